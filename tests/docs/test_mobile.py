"""docs/deploy-android.md and docs/deploy-ios.md: every call in their code is one that ONNX Runtime has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.cpp_runner import ROOT, own_onnxruntime
from support.doc_snippets import calls, fenced, sends, without_comments
from support.objectivec_api import HEADERS, OBJECTIVEC_API, OBJECTIVEC_ENUMERATORS

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.packed_sizes import PackedSizes

ANDROID, IOS = "deploy-android.md", "deploy-ios.md"
HEADER = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
#: What Kotlin, Java and Android bring themselves.
KOTLIN_OWN = {"loadLibrary", "File", "toIntExact", "allocateDirect", "order", "nativeOrder"}
KOTLIN_OWN |= {"setOf", "mapOf", "getValue"}
#: What Swift, Foundation and the snippet itself bring.
SWIFT_OWN = {"step", "row", "Int64", "NSMutableData", "dropFirst", "hasPrefix", "assumingMemoryBound", "NSNumber"}
OBJECTIVEC_OWN = {"alloc", "dataWithLength:"}


JDK = ROOT / "build" / "jdk"
DECLARATIONS = sorted((ROOT / "tests" / "docs" / "java").rglob("*.java"))


def java_methods() -> dict[str, set[int]]:
    """Methods and constructors that are declared → how many arguments they can have."""
    found: dict[str, set[int]] = {}
    for path in DECLARATIONS:
        for name, arguments in re.findall(r"(\w+)\(([^()]*)\)", without_comments(path.read_text())):
            flat = re.sub(r"<[^<>]*>", "", arguments)  # commas in there separate no arguments
            found.setdefault(name, set()).add(flat.count(",") + 1 if flat.strip() else 0)
    return found


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Java blocks, compiled for Android's Java against the declarations."""
    assert (JDK / "javac").exists(), "run scripts/get_jdk.sh first, as 'make peers' does"
    folder = tmp_path_factory.mktemp("java")
    decoder, genai = fenced(ANDROID, "java")
    (folder / "Decoder.java").write_text(decoder)
    body = (
        f"void run(String folder, String prompt) throws GenAIException {{\n{genai}\n}}\nnative void show(String text);"
    )
    (folder / "Genai.java").write_text(f"import ai.onnxruntime.genai.*;\nclass Genai {{\n{body}\n}}\n")
    (folder / "Rows.java").write_text(
        "public class Rows { public static void main(String[] a) { for (int i = 0; i < a.length; i += 4)\n"
        "System.out.println(Decoder.rows(a[i], Long.parseLong(a[i + 1]), Long.parseLong(a[i + 2]), "
        "Long.parseLong(a[i + 3]))); } }\n"
    )
    sources = [folder / name for name in ("Decoder.java", "Genai.java", "Rows.java")]
    done = run(JDK / "javac", "--release", "8", "-Xlint:-options", "-d", folder, *DECLARATIONS, *sources)
    assert done.returncode == 0, done.stderr
    return folder


def test_java_gives_the_rows_that_python_gives(classes: Path) -> None:
    cases = [
        (cache_format, PackedSizes(cache_format, head_size, sinks, window), tokens)
        for cache_format in ("int8", "int4")
        for head_size, sinks, window in ((6, 0, 8), (64, 4, 128), (80, 3, 29), (129, 1, 500), (256, 0, 33))
        for tokens in (1, 7, 8, 136, 137, 138, 161, 162, 400, 629, 630, 757, 758, 759, 4096)
    ]
    arguments = [(name, sizes.exact, sizes.bytes_per_token, tokens) for name, sizes, tokens in cases]
    done = run(JDK / "java", "-cp", classes, "Rows", *(part for case in arguments for part in case))
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == [sizes.rows_needed(tokens) for _, sizes, tokens in cases]


def test_java_reads_what_the_configuration_has() -> None:
    (decoder, _), fields = fenced(ANDROID, "java"), set(DeltaConfig.__dataclass_fields__)
    read = set(re.findall(r'config\.\w+\("(\w+)"\)', decoder))
    assert read == {"sinks", "window", "cache_format"}
    assert read <= fields


def test_kotlin_calls() -> None:
    (kotlin,) = fenced(ANDROID, "kotlin")
    declared, seen = java_methods(), set()
    declared["get"].add(0)  # java.util.Optional's
    for name, arguments in calls(kotlin):
        if name in declared:
            assert len(arguments) in declared[name], (name, arguments)
        else:
            assert name in KOTLIN_OWN, f"{name} is not declared in tests/docs/java"
        seen.add(name)
    assert {"run", "createTensor", "registerCustomOpLibrary", "getCustomMetadata"} <= seen
    assert seen >= KOTLIN_OWN


def test_declarations_are_in_use() -> None:
    """So that the table says nothing that nobody checks against a page, and says where each was read."""
    code = without_comments("\n".join(fenced(ANDROID, "java") + fenced(ANDROID, "kotlin")))
    declared = "\n".join(path.read_text() for path in DECLARATIONS)
    for name in java_methods():
        assert re.search(rf"\b{name}\b", code), name
    for path in DECLARATIONS:
        assert re.match(r"// From (microsoft/[\w-]+ \S+ at [0-9a-f]{40}|Android's reference)", path.read_text()), path
        assert re.search(rf"\b{path.stem}\b", code) or len(re.findall(rf"\b{path.stem}\b", declared)) > 1, path


def swift_name(name: str, arguments: list[str]) -> str:
    matched = [re.match(r"(\w+)\s*:", argument) for argument in arguments]
    labels = [f"{label.group(1)}:" if label else "_:" for label in matched]
    return f"{name}({''.join(labels)})"


def test_swift_calls() -> None:
    (swift,) = fenced(IOS, "swift")
    methods = {method.swift for method in OBJECTIVEC_API if not method.swift.startswith("init(")}
    classes = {method.owner + method.swift[4:] for method in OBJECTIVEC_API if method.swift.startswith("init(")}
    seen = set()
    for name, arguments in calls(swift):
        if name not in {*SWIFT_OWN, "init"}:
            seen.add(swift_name(name, arguments))
    assert seen == methods | classes
    for spelled in set(re.findall(r"[(:]\s*\.(\w+)", swift)):
        assert spelled in OBJECTIVEC_ENUMERATORS.values(), spelled


def test_objective_c_sends() -> None:
    (code,) = fenced(IOS, "objective-c")
    seen = set(sends(code)) - OBJECTIVEC_OWN
    assert seen == {method.selector for method in OBJECTIVEC_API} - {"inputNamesWithError:"}
    for spelled in set(re.findall(r"\bORT\w+(?:Type|Level)[A-Z]\w+", code)):
        assert spelled in OBJECTIVEC_ENUMERATORS, spelled
    assert {method.file for method in OBJECTIVEC_API} < set(HEADERS)


def test_bridging_header_says_what_our_header_says(tmp_path: Path) -> None:
    """C knows one declaration of a name: two that differ do not compile."""
    (bridging,) = fenced(IOS, "c")
    alone = tmp_path / "alone.c"
    alone.write_text(bridging)
    both = tmp_path / "both.c"
    both.write_text(f'#include "ort/deltallm_ops.h"\n{bridging}')
    command = ["gcc", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-isystem", HEADER, "-I", ROOT / "ops"]
    for source in (alone, both):
        done = run(*command, source)
        assert done.returncode == 0, done.stderr
    both.write_text(f'#include "ort/deltallm_ops.h"\n{bridging.replace("const struct", "struct")}')
    assert "conflicting types" in run(*command, both).stderr


@pytest.mark.parametrize("page", [ANDROID, IOS, "deploy-linux-arm64.md"])
def test_session_keys_are_known_to_onnxruntime(page: str) -> None:
    languages = ("java", "kotlin", "swift", "objective-c", "cpp")
    code = "\n".join(block for language in languages for block in fenced(page, language))
    keys = set(re.findall(r'"((?:session|memory)\.[a-z_.]+)"', code))
    assert keys == {"session.intra_op.allow_spinning"}
    library = own_onnxruntime().read_bytes()
    for key in keys | {"memory.enable_memory_arena_shrinkage"}:
        assert key.encode() in library, key
