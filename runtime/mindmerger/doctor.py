"""What is right and wrong with an installation and a bundle, as a list of findings, each with what to do.

Nothing here raises because of what it finds: a damaged file is a line, and the next file is looked at all the same.
Native code is asked in a process of its own (`mindmerger.probe`). Knows nothing about how findings are shown.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mindmerger import cache
from mindmerger.bundle import Bundle, resolve
from mindmerger.child import Child
from mindmerger.errors import BundleError, MindMergerError, ModelError
from mindmerger.i18n import _
from mindmerger.limits import check_bundle, check_libraries
from mindmerger.machine import available_memory, cpu_features, free_disk, processor_name
from mindmerger.manifest import FileInfo, Manifest, read_manifest
from mindmerger.packages import find_package_file

Level = Literal["ok", "warning", "problem"]
PACKAGES = ("numpy", "onnxruntime", "llama-cpp-python", "tokenizers", "gguf", "click")
# What makes a prompt visibly faster where a build uses it; the rest is a few per cent.
_WORTH_IT = {"AVX", "AVX2", "F16C", "FMA", "AVX512", "NEON", "DOTPROD", "MATMUL_INT8"}
_BAKE_SPARE = 32 * 1024 * 1024
_REINSTALL = "pip install --force-reinstall --no-cache-dir"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and (where it is not well) what to do.

    `exit_code` is that of the error which the problem would cause, 0 for what is no problem.
    """

    check: str
    level: Level
    text: str
    advice: str = ""
    exit_code: int = 0


def examine(bundle: str | None, *, quick: bool = False, context: int | None = None) -> Iterator[Finding]:
    """All findings, each as soon as it is known. `quick` leaves out the hashes and the golden questions."""
    yield from packages()
    try:
        check_libraries()
    except ModelError as error:  # the first import of one would be the end of this process
        yield _from_error("memory", error)
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
        yield _from_error("bundle", error)
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


# ------------------------------------------------------------------------------------------------ installation


def packages() -> Iterator[Finding]:
    """Versions of Python and of the packages that the runtime needs."""
    import mindmerger

    yield Finding(
        "mindmerger", "ok", f"{mindmerger.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            if name == "onnxruntime":  # the build for CUDA is the same module under another name
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    found.append(f"onnxruntime-gpu {importlib.metadata.version('onnxruntime-gpu')}")
                    continue
            yield Finding(
                "packages",
                "problem",
                _("{name} is not installed").format(name=name),
                f"pip install {name}",
                ModelError.exit_code,
            )
    yield Finding("packages", "ok", ", ".join(found))


def libraries() -> Iterator[Finding]:
    """The native libraries: whether they run here, what they use of the processor, what else they could use."""
    with Child("mindmerger.probe", what=_("loading {library}").format(library="llama.cpp")) as child:
        try:
            llama = child.ask(do="llama")
        except MindMergerError as error:
            yield _from_error("processor", error, f"{_REINSTALL} llama-cpp-python")
        else:
            yield processor(set(llama["features"]))
            if llama["gpu"]:
                yield Finding("GPU for llama.cpp", "ok", _("this build can put layers of the LLM on a GPU"))
            else:
                yield Finding("GPU for llama.cpp", "ok", _("none: this build runs on the CPU, which every bundle can"))
    with Child("mindmerger.probe", what=_("loading {library}").format(library="ONNX Runtime")) as child:
        try:
            providers = child.ask(do="onnxruntime")["providers"]
        except MindMergerError as error:
            yield _from_error("ONNX Runtime", error, f"{_REINSTALL} onnxruntime")
        else:
            if "CPUExecutionProvider" in providers:
                yield Finding("ONNX Runtime", "ok", _("providers: {names}").format(names=", ".join(providers)))
            else:
                yield Finding(
                    "ONNX Runtime",
                    "problem",
                    _("it has no provider for the CPU: {names}").format(names=", ".join(providers) or "-"),
                    f"{_REINSTALL} onnxruntime",
                    ModelError.exit_code,
                )


def processor(built_with: set[str]) -> Finding:
    """What llama.cpp was built with against what the processor has, both in ggml's names."""
    features = cpu_features()
    name = f"{processor_name()} ({platform.machine()})"
    if not features.asked:
        return Finding(
            "processor",
            "warning",
            _("{name}: the system does not say what it can").format(name=name),
            _("if llama.cpp ends with an illegal instruction, build it on this machine"),
        )
    lacking = sorted((built_with & features.asked) - features.present)
    if lacking:
        return Finding(
            "processor",
            "problem",
            _("{name} lacks {features}, which llama.cpp was built with: it may end without a word").format(
                name=name, features=", ".join(lacking)
            ),
            f"CMAKE_ARGS=-DGGML_NATIVE=ON {_REINSTALL} --no-binary llama-cpp-python llama-cpp-python",
            ModelError.exit_code,
        )
    unused = sorted((features.present & _WORTH_IT) - built_with)
    used = ", ".join(sorted(built_with & features.present)) or _("no vector instructions")
    if unused:
        return Finding(
            "processor",
            "warning",
            _("{name}: llama.cpp uses {used} and not {unused}").format(name=name, used=used, unused=", ".join(unused)),
            _("faster: {command}").format(
                command=f"CMAKE_ARGS=-DGGML_NATIVE=ON {_REINSTALL} --no-binary llama-cpp-python llama-cpp-python"
            ),
        )
    return Finding("processor", "ok", _("{name}: llama.cpp uses {used}").format(name=name, used=used))


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
        return _from_error(name, error)
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
    return Finding(name, "ok", f"{entry.role}, {_megabytes(size)}, {right}")


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
            return Finding("prepared LLM", "ok", f"{_megabytes(path.stat().st_size)}, {path.parent}")
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
            total=_megabytes(need.total),
            files=_megabytes(need.files),
            cache=_megabytes(need.cache),
            buffers=_megabytes(need.buffers),
            program=_megabytes(need.program),
        )
        yield _enough_memory(need.total, parts, available_memory())
        from mindmerger.llama import default_threads

        try:
            check_bundle(bundle, context, default_threads())
        except ModelError as error:
            yield _from_error("memory limit", error)
    yield _disk(bundle)


def _enough_memory(need: int, text: str, free: int | None) -> Finding:
    advice = _("close other programs, use a smaller context or a smaller bundle")
    if free is None:
        return Finding(
            "memory", "warning", _("{text}; the system does not say how much is free").format(text=text), advice
        )
    text = _("{text}, {free} are free").format(text=text, free=_megabytes(free))
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
        text = _("{text}, {free} are free").format(text=text, free=_megabytes(free))
    if free is not None and free < need:
        return Finding(
            "cache folder",
            "problem",
            _("{text}, {need} are needed to prepare the LLM").format(text=text, need=_megabytes(need)),
            _("make room, or set XDG_CACHE_HOME to another disk"),
            ModelError.exit_code,
        )
    if need:
        text = _("{text}, {need} are needed to prepare the LLM").format(text=text, need=_megabytes(need))
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
            yield _from_error("load", error)
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
        _("{command}, or report this machine").format(command=f"{_REINSTALL} llama-cpp-python onnxruntime"),
        ModelError.exit_code,
    )


# ----------------------------------------------------------------------------------------------------- wording


def _from_error(check: str, error: MindMergerError, advice: str = "") -> Finding:
    """An error's sentence says what is wrong and, after its last colon, what to do."""
    text, colon, own = str(error).rpartition(": ")
    if not colon or advice:
        return Finding(check, "problem", str(error), advice or _("see the message"), error.exit_code)
    return Finding(check, "problem", text.rstrip(), own, error.exit_code)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def worst(findings: list[Finding]) -> int:
    """The exit code of a command that reports these: that of the first problem, 0 without one."""
    return next((finding.exit_code for finding in findings if finding.level == "problem"), 0)
