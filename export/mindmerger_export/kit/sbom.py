"""sbom.cdx.json: the kit's bill of materials, CycloneDX 1.6.

Packages with their package URLs, sha256 of their wheels and what depends on what; llama.cpp as a part of the package that
carries it; the models with the sha256 of their files; the shared libraries. cyclonedx-python-lib builds and checks it.
"""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mindmerger.cache import sha256_of
from mindmerger.errors import MindMergerError
from mindmerger.manifest import FileInfo, Manifest
from mindmerger_export.kit.wheels import LLAMA, NAME, Wheel, canonical

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License
    from packaging.requirements import Requirement

FILE = "sbom.cdx.json"
# The parts of a bundle that hold each model.
_ROLES = {"encoder": ("merger", "merger-data", "tokenizer"), "llm": ("llm",)}


def render(wheels: Iterable[Wheel], manifest: Manifest, libraries: Mapping[str, Path]) -> str:
    """The document, valid by CycloneDX's own schema. The same parts give the same serial number."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    bom = Bom()
    components: dict[str, Component] = {}
    requires: dict[str, tuple[str, ...]] = {}
    for wheel in wheels:
        inside = []
        if wheel.name == LLAMA:
            inside = [Component(name="llama.cpp", type=ComponentType.LIBRARY, licenses=_licences("MIT"))]
        components[wheel.name] = Component(
            name=wheel.name,
            version=wheel.version,
            type=ComponentType.APPLICATION if wheel.name == NAME else ComponentType.LIBRARY,
            bom_ref=f"{wheel.name}@{wheel.version}",
            purl=PackageURL("pypi", name=wheel.name, version=wheel.version),
            description=wheel.summary or None,
            licenses=_licences(wheel.licence),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
            components=inside,
        )
        requires[wheel.name] = wheel.requires
    ours = components[NAME]
    bom.metadata.component = ours
    bom.metadata.timestamp = _now()
    for component in components.values():
        if component is not ours:
            bom.components.add(component)
    models = [_model(manifest, "encoder"), _model(manifest, "llm")]
    others = [
        Component(
            name=soname,
            type=ComponentType.LIBRARY,
            bom_ref=f"library:{soname}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256_of(path))],
        )
        for soname, path in sorted(libraries.items())
    ]
    for component in (*models, *others):
        bom.components.add(component)
    for name, component in components.items():
        needed = {components[one] for one in _needed(requires[name], components) if one != name}
        if component is ours:
            needed |= set(models)
        if name == LLAMA:
            needed |= set(others)
        bom.register_dependency(component, needed)
    content = sorted(str(one.hashes[0].content) for one in components.values())
    content += [entry.sha256 for entry in manifest.files]
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, "\n".join(content))
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    check(text)
    return text


def check(text: str) -> None:
    """Raises MindMergerError where a document is not as CycloneDX's schema wants it."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    json.loads(text)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        raise MindMergerError(f"the bill of materials is not valid CycloneDX ({str(fault)[:300]}): report this")


def _licences(said: str) -> list[License]:
    """An SPDX expression as such, else the words as a name; nothing where nothing is told."""
    if not said:
        return []
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(said)]


def _needed(requires: Iterable[str], components: Mapping[str, object]) -> set[str]:
    """Those requirements that hold here and that the kit has. Extras are not looked into: what the kit has is in it."""
    from packaging.requirements import Requirement

    found = set()
    for line in requires:
        requirement = Requirement(line)
        name = canonical(requirement.name)
        if name in components and _holds(requirement):
            found.add(name)
    return found


def _holds(requirement: Requirement) -> bool:
    if requirement.marker is None:
        return True
    # `extra == "serve"` holds of what the kit took along: a component that is here was asked for by somebody
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", "serve", "default"))


def _model(manifest: Manifest, kind: str) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    def file(entry: FileInfo) -> Component:
        return Component(
            name=f"bundle/{entry.path}",
            type=ComponentType.FILE,
            bom_ref=f"file:bundle/{entry.path}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
        )

    said = manifest.encoder if kind == "encoder" else manifest.llm
    return Component(
        name=said.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{kind}:{said.name}",
        licenses=_licences(said.licence),
        properties=[
            Property(name="mindmerger:part", value=kind),
            Property(name="mindmerger:bundle", value=manifest.name),
        ],
        components=[file(entry) for entry in manifest.files if entry.role in _ROLES[kind]],
    )


def _now() -> datetime.datetime:
    """The time of the kit; SOURCE_DATE_EPOCH (reproducible-builds.org) replaces it."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch and epoch.isdigit():
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
