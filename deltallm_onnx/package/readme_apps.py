"""How a package is loaded in an app: Kotlin for Android, Swift for iOS, as docs/deploy-….md say at length."""

from __future__ import annotations

from collections.abc import Iterator

from deltallm_onnx.package.cache_facts import CacheGroup
from deltallm_onnx.package.parts import Parts

_UNTESTED = "Nothing here was run: no such device, emulator or compiler was at hand where this package was made."


def app_lines(parts: Parts) -> Iterator[str]:
    """The sections for an app."""
    yield "## What was not run"
    yield _UNTESTED
    yield ""
    yield from _files(parts)
    if parts.sources is not None:
        yield ""
        yield from _build(parts)
    yield ""
    yield from _kotlin(parts) if parts.target.system == "android" else _swift(parts)
    yield ""
    yield from _numbers(parts)


def _files(parts: Parts) -> Iterator[str]:
    android = parts.target.system == "android"
    yield "## Where the files go"
    yield "| file | where |"
    yield "|---|---|"
    if parts.request.needs_library:
        place = "`app/src/main/jniLibs/arm64-v8a/`" if android else "linked into the app; `-lc++` in Other Linker Flags"
        built = "" if parts.library else ", once it is built"
        yield f"| {parts.target.library}{built} | {place} |"
    names = [parts.model_name, *(path.name for path in parts.model.data_files if parts.request.writes_onnx)]
    storage = "the app's `filesDir`" if android else "the bundle, or Application Support"
    yield f"| {', '.join(names)} | {storage}, side by side |"
    if (parts.model.folder / "tokenizer.json").is_file():
        yield "| tokenizer.json | where the app's tokenizer wants it: the lines below take token ids |"


def _build(parts: Parts) -> Iterator[str]:
    yield f"## Build {parts.target.library}"
    if parts.target.system == "android":
        yield "With the NDK (r27 or newer) and ONNX Runtime's headers, in this folder:"
        settings = [
            "export ANDROID_NDK=…                    # r27 or newer",
            "export ONNXRUNTIME_INCLUDE_DIR=…        # the folder of onnxruntime_c_api.h",
        ]
    else:
        yield "On a Mac with Xcode and ONNX Runtime's headers, in this folder (simulator: `ios-simulator-arm64`):"
        settings = ["export ONNXRUNTIME_INCLUDE_DIR=…        # the folder of onnxruntime_c_api.h"]
    yield ""
    for line in (*settings, *parts.target.commands):
        yield f"    {line}"
    yield ""
    yield "The library is below build/ then; `deltallm-onnx package … --library FILE` checks it and packs it."


def _kotlin(parts: Parts) -> Iterator[str]:
    yield "## Kotlin"
    yield (
        'Gradle: `implementation "com.microsoft.onnxruntime:onnxruntime-android:1.27.0"` or newer; minSdk 24. The '
        "decoder, in Java, is in docs/deploy-android.md of deltallm-onnx; it reads the numbers below from the model."
    )
    yield ""
    yield "```kotlin"
    if parts.request.needs_library:
        yield 'System.loadLibrary("deltallm_ops")'
    yield "val environment = OrtEnvironment.getEnvironment()"
    yield "val options = OrtSession.SessionOptions().apply {   // keep it open as long as the session"
    if parts.request.needs_library:
        yield f'    registerCustomOpLibrary("{parts.target.library}")'
    yield "    setIntraOpNumThreads(4)"
    yield "    setCPUArenaAllocator(false)"
    yield "    setMemoryPatternOptimization(false)"
    yield '    addConfigEntry("session.intra_op.allow_spinning", "0")'
    yield "}"
    yield f'val session = environment.createSession(File(context.filesDir, "{parts.model_name}").path, options)'
    yield "```"


def _swift(parts: Parts) -> Iterator[str]:
    yield "## Swift"
    yield (
        "ONNX Runtime as Microsoft's Swift package `onnxruntime-swift-package-manager`, or the pod `onnxruntime-objc`."
    )
    if parts.request.needs_library:
        yield "In the bridging header:"
        yield ""
        yield "```c"
        yield "struct OrtStatus;"
        yield "struct OrtSessionOptions;"
        yield "struct OrtApiBase;"
        yield (
            "struct OrtStatus* DeltaLLMRegisterCustomOps("
            "struct OrtSessionOptions* options, const struct OrtApiBase* api);"
        )
        yield "```"
    yield ""
    yield "The class Decoder of docs/deploy-ios.md of deltallm-onnx opens a model with these lines:"
    yield ""
    yield "```swift"
    yield "let options = try ORTSessionOptions()"
    if parts.request.needs_library:
        yield "try options.registerCustomOps(functionPointer: DeltaLLMRegisterCustomOps)"
    yield "try options.setIntraOpNumThreads(threads)"
    yield 'try options.addConfigEntry(withKey: "session.intra_op.allow_spinning", value: "0")'
    yield "session = try ORTSession(env: env, modelPath: modelPath, sessionOptions: options)"
    yield "```"
    groups = parts.facts.groups
    if parts.request.needs_library and len(groups) == 1 and parts.model.vocabulary:
        yield ""
        yield f"Of this model, with room for {parts.facts.context} tokens:"
        yield ""
        yield "```swift"
        yield f"let decoder = try Decoder(modelPath: modelPath, {_swift_numbers(groups[0])},"
        yield f"                          vocabulary: {parts.model.vocabulary}, threads: 2)"
        yield "```"
        if groups[0].dtype == "float32":
            yield ""
            yield "The class is written for packed caches: these are float32, so write `.float` and 4 bytes a number."


def _swift_numbers(group: CacheGroup) -> str:
    return f"kvHeads: {group.kv_heads}, rows: {group.rows}, rowSize: {group.row_size}"


def _numbers(parts: Parts) -> Iterator[str]:
    yield "## The caches"
    shape = "[1, KV heads, rows, row size]"
    yield f"Shape {shape} of every past_key_values.N.key and .value, for {parts.facts.context} tokens:"
    if not parts.request.needs_library:
        yield (
            "Without the operator library, past and present caches must be apart, which the decoders of the pages do "
            "not do: begin with 0 rows, and give every present as the past of the next call."
        )
    yield ""
    yield "| layers | KV heads | rows | row size | element type |"
    yield "|---|---|---|---|---|"
    for group in parts.facts.groups:
        layers = _ranges(group.layers)
        rows = f"{group.rows} (fixed)" if group.fixed else str(group.rows)
        yield f"| {layers} | {group.kv_heads} | {rows} | {group.row_size} | {group.dtype} |"
    yield ""
    yield f"The logits have {parts.model.vocabulary or 'the vocabulary'} numbers per token."


def _ranges(layers: tuple[int, ...]) -> str:
    """0–3, 5 of 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)
