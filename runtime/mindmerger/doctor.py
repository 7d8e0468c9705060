"""What is right and wrong with an installation and a bundle, as a list of findings, each with what to do.

Nothing here raises because of what it finds: a damaged file is a line, and the next file is looked at all the same.
Native code is asked in a process of its own (`mindmerger.probe`). Knows nothing about how findings are shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mindmerger import cache
from mindmerger.bundle import Bundle, resolve
from mindmerger.child import Child
from mindmerger.errors import BundleError, MindMergerError, ModelError
from mindmerger.findings import REINSTALL, Finding, from_error, megabytes
from mindmerger.i18n import _
from mindmerger.installation import libraries, packages
from mindmerger.limits import check_bundle, check_libraries
from mindmerger.machine import available_memory, free_disk
from mindmerger.manifest import FileInfo, Manifest, read_manifest
from mindmerger.packages import find_package_file

_BAKE_SPARE = 32 * 1024 * 1024


def examine(bundle: str | None, *, quick: bool = False, context: int | None = None) -> Iterator[Finding]:
    """All findings, each as soon as it is known. `quick` leaves out the hashes and the golden questions."""
    yield from packages()
    try:
        check_libraries()
    except ModelError as error:  # the first import of one would be the end of this process
        yield from_error("memory", error)
        return
    yield from libraries()
    yield from examine_bundle(bundle, quick=quick, context=context)
    yield Finding("network", "ok", _("none is needed: nothing is downloaded and nothing is sent"))


def examine_bundle(bundle: str | None, *, quick: bool = False, context: int | None = None) -> Iterator[Finding]:
    """What is right and wrong with a bundle and with this machine's room for it."""
    try:
        folder = resolve(bundle)
        manifest = read_manifest(folder)
    except MindMergerError as error:
        yield from_error("bundle", error)
        return
    text = _("{name} ({method}, {count} languages), {folder}").format(
        name=manifest.name, method=manifest.method, count=len(manifest.languages), folder=folder
    )
    yield Finding("bundle", "ok", text)
    opened = Bundle(folder, manifest, {})
    broken = False
    for finding in files(opened, quick=quick):
        broken = broken or finding.level == "problem"
        yield finding
    yield from resources(opened, context)
    yield from golden(opened, broken=broken, quick=quick, context=context)


# ------------------------------------------------------------------------------------------------------ bundle


def files(bundle: Bundle, *, quick: bool) -> Iterator[Finding]:
    """Every file of the bundle, hashed in full; enters those that are there into `bundle.paths`."""
    for entry in bundle.manifest.files:
        yield _file(bundle, entry, quick)
    if bundle.manifest.bake is not None:
        yield _baked(bundle.manifest, quick)


def _file(bundle: Bundle, entry: FileInfo, quick: bool) -> Finding:
    name = f"file {entry.path}"
    again = f"pip install --force-reinstall {entry.package}" if entry.package else _("copy, install or export it again")

    def problem(text: str) -> Finding:
        return Finding(name, "problem", text, again, BundleError.exit_code)

    try:
        if entry.package is not None:
            path = find_package_file(entry.package, entry.path)
        else:
            path = bundle.folder.joinpath(*entry.path.split("/"))
        if not path.is_file():
            return problem(_("{path} is missing").format(path=path))
        size = path.stat().st_size
        if size != entry.bytes:
            return problem(
                _("it has {found} bytes instead of {size}: it is damaged").format(found=size, size=entry.bytes)
            )
        if not quick and cache.sha256_of(path) != entry.sha256:
            return problem(_("its content has another sha256 than the manifest says: it is damaged"))
        if entry.role in ("llm", "llm-base"):
            from mindmerger.gguf_check import check_llm

            check_llm(path)
    except MindMergerError as error:
        return from_error(name, error)
    except OSError as error:
        return Finding(
            name,
            "problem",
            _("it cannot be read ({reason})").format(reason=error.strerror),
            _("check its permissions"),
            BundleError.exit_code,
        )
    bundle.paths.setdefault(entry.role, path)
    right = _("its size is right") if quick else _("its sha256 is right")
    return Finding(name, "ok", f"{entry.role}, {megabytes(size)}, {right}")


def _baked(manifest: Manifest, quick: bool) -> Finding:
    """The LLM that was made of base and adapter: it repairs itself, so that nothing here is a problem."""
    from mindmerger.bake import kept

    assert manifest.bake is not None
    for path in kept(manifest.bake.type, manifest.file("llm-base").sha256, manifest.file("adapter").sha256):
        try:
            if not quick and cache.sha256_of(path) != path.name.split(".")[1]:
                return Finding(
                    "prepared LLM",
                    "warning",
                    _("{path} is damaged").format(path=path),
                    _("delete it: the next start makes it again"),
                )
            return Finding("prepared LLM", "ok", f"{megabytes(path.stat().st_size)}, {path.parent}")
        except OSError:
            continue
    return Finding("prepared LLM", "ok", _("not made yet: the first start takes a few seconds more"))


def resources(bundle: Bundle, context: int | None) -> Iterator[Finding]:
    """Free memory and disk against what the bundle needs."""
    from mindmerger.memory import estimate

    try:
        need = estimate(bundle, context)
    except MindMergerError as error:
        yield Finding(
            "memory",
            "warning",
            _("the need cannot be estimated: {error}").format(error=error),
            _("repair the bundle's files first"),
        )
    else:
        parts = _("needs about {total} (files {files}, KV cache {cache}, buffers {buffers}, program {program})").format(
            total=megabytes(need.total),
            files=megabytes(need.files),
            cache=megabytes(need.cache),
            buffers=megabytes(need.buffers),
            program=megabytes(need.program),
        )
        yield _enough_memory(need.total, parts, available_memory())
        from mindmerger.llama import default_threads

        try:
            check_bundle(bundle, context, default_threads())
        except ModelError as error:
            yield from_error("memory limit", error)
    yield _disk(bundle)


def _enough_memory(need: int, text: str, free: int | None) -> Finding:
    advice = _("close other programs, use a smaller context or a smaller bundle")
    if free is None:
        return Finding(
            "memory", "warning", _("{text}; the system does not say how much is free").format(text=text), advice
        )
    text = _("{text}, {free} are free").format(text=text, free=megabytes(free))
    if free < need:
        return Finding("memory", "problem", text, advice, ModelError.exit_code)
    return Finding("memory", "warning", text, advice) if free < 1.2 * need else Finding("memory", "ok", text)


def _disk(bundle: Bundle) -> Finding:
    """Space for the prepared LLM, where there is still one to prepare, and for the notes about hashes."""
    manifest = bundle.manifest
    places = ", ".join(str(place) for place in cache.cache_folders())
    folder = cache.writable_folder("checked")
    need = 0
    if manifest.bake is not None:
        from mindmerger.bake import baked_bytes, kept

        base, adapter = manifest.file("llm-base"), manifest.file("adapter")
        if not kept(manifest.bake.type, base.sha256, adapter.sha256):
            need = base.bytes * 2 + _BAKE_SPARE  # unless its size can be worked out
            with contextlib.suppress(MindMergerError, KeyError):
                need = baked_bytes(bundle.paths["llm-base"], bundle.paths["adapter"], manifest.bake.type) + _BAKE_SPARE
    if folder is None:
        advice = _("set XDG_CACHE_HOME to a folder that can be written to")
        if need:
            return Finding(
                "cache folder",
                "problem",
                _("the LLM must be prepared and none can be written to ({places})").format(places=places),
                advice,
                ModelError.exit_code,
            )
        return Finding(
            "cache folder",
            "warning",
            _("none can be written to ({places}): every start hashes all files").format(places=places),
            advice,
        )
    free = free_disk(folder)
    text = str(folder.parent)
    if free is not None:
        text = _("{text}, {free} are free").format(text=text, free=megabytes(free))
    if free is not None and free < need:
        return Finding(
            "cache folder",
            "problem",
            _("{text}, {need} are needed to prepare the LLM").format(text=text, need=megabytes(need)),
            _("make room, or set XDG_CACHE_HOME to another disk"),
            ModelError.exit_code,
        )
    if need:
        text = _("{text}, {need} are needed to prepare the LLM").format(text=text, need=megabytes(need))
    return Finding("cache folder", "ok", text)


def golden(bundle: Bundle, *, broken: bool, quick: bool, context: int | None) -> Iterator[Finding]:
    """Load the bundle and ask the questions whose answers the exporting machine wrote down."""
    name, examples = "golden questions", bundle.manifest.golden
    if quick:
        yield Finding(name, "ok", _("not asked (--quick)"))
        return
    if broken:
        yield Finding(
            name, "warning", _("not asked: the bundle's files are not whole"), _("repair the bundle's files first")
        )
        return
    same = 0
    with Child("mindmerger.probe", what=_("the loaded bundle")) as child:
        try:
            child.ask(do="load", bundle=str(bundle.folder.absolute()), context=context)
            yield Finding("load", "ok", _("encoder and LLM load and fit each other"))
            for number, example in enumerate(examples, 1):
                ids = child.ask(do="golden", question=example.question, tokens=len(example.token_ids))["token_ids"]
                if tuple(ids) == example.token_ids:
                    same += 1
                    continue
                pairs = zip(ids, example.token_ids, strict=False)
                where = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ids), len(example.token_ids)))
                yield Finding(
                    f"golden question {number}",
                    "warning",
                    _("({language}) differs from token {token} of {count} on").format(
                        language=example.language, token=where + 1, count=len(example.token_ids)
                    ),
                    _("one or two may: processors round differently where two tokens are almost as likely"),
                )
        except MindMergerError as error:
            yield from_error("load", error)
            return
    yield _golden_verdict(same, len(examples))


def _golden_verdict(same: int, asked: int) -> Finding:
    name = "golden questions"
    if not asked:
        return Finding(name, "warning", _("this bundle carries none"), _("mm-export records some"))
    text = _(
        "{same} of {asked} are answered as on the machine that exported the bundle, with the network blocked"
    ).format(same=same, asked=asked)
    if same == asked:
        return Finding(name, "ok", text)
    if 2 * same >= asked:
        return Finding(name, "warning", text, _("nothing, if answers look sensible; see the lines above"))
    return Finding(
        name,
        "problem",
        text,
        _("{command}, or report this machine").format(command=f"{REINSTALL} llama-cpp-python onnxruntime"),
        ModelError.exit_code,
    )
