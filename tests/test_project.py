"""The project as a whole: its wheel, imports, public names, texts and dependencies."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hwgen", "quant", "rtl", "sim")
PUBLIC = (
    "hwgen", "hwgen.backends", "hwgen.backends.rtl", "hwgen.cli", "hwgen.cost", "hwgen.errors",
    "hwgen.explore", "hwgen.files", "hwgen.flow", "hwgen.ir", "hwgen.lower", "hwgen.targets",
    "quant", "rtl", "sim",
)  # fmt: skip
MODULE_LINES = 450
FUNCTION_LINES = 60
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Packages whose import name is not their distribution's name.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "cocotbext": "cocotbext-axi", "cocotb_tools": "cocotb"}


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def names(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what leads imports to the checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | extra


# The wheel.


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not installed; run make setup")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", str(folder)], cwd=ROOT, env=environment(), check=True)
    (file,) = folder.glob("hwgen-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of a clean environment that holds the wheel.

    Other packages come from this environment: a path file names its folders, which adds them
    without following their own path files, such as that of an editable installation.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index"]
    subprocess.run([*command, "--no-deps", "-q", str(wheel)], env=environment(), check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    assert others
    (site / "dependencies.pth").write_text("\n".join(others) + "\n")
    return folder / "bin"


def test_wheel_holds_the_four_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = set(names(sources(*PACKAGES))) | {f"{name}/py.typed" for name in PACKAGES}
    weights = {str(file.relative_to(ROOT)) for file in (ROOT / "quant/weights").iterdir()}
    shipped = {f"lenet5-{name}.safetensors" for name in ("digits", "mnist", "cifar10")}
    assert shipped <= {Path(name).name for name in weights}
    assert wanted | weights <= held
    assert {name.split("/")[0] for name in held} == set(PACKAGES)


def test_wheel_works_in_a_clean_environment(installed: Path, tmp_path: Path) -> None:
    def output(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), check=True, capture_output=True, text=True
        )
        assert done.stderr == ""
        return done.stdout

    version = importlib.import_module("hwgen").__version__
    assert output(str(installed / "hwgen"), "--version").strip() == f"hwgen {version}"
    assert "usage" in output(str(installed / "hwgen"), "--help").lower()
    script = """
import sys
import hwgen, quant, rtl, sim
from quant.checkpoints import WEIGHTS, load_checkpoint, load_model
for package in (hwgen, quant, rtl, sim):
    assert package.__file__.startswith(sys.prefix), package.__file__
for path in sorted(WEIGHTS.glob("*.safetensors")):
    load_model(load_checkpoint(path))
    print(path.stem)
"""
    stems = output(str(installed / "python"), "-c", script).split()
    assert stems == sorted(path.stem for path in (ROOT / "quant/weights").glob("*.safetensors"))


# Imports.


def test_import_contracts() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_saved_network_becomes_hardware_without_torch() -> None:
    """Everything below `quant` imports where torch, onnx and scikit-learn cannot be imported."""
    script = """
import importlib, pkgutil, sys
for name in ("torch", "onnx", "onnxruntime", "sklearn", "quant"):
    sys.modules[name] = None
roots = ("hwgen.ir", "hwgen.targets", "hwgen.lower", "rtl", "hwgen.backends", "sim", "hwgen.cost")
for root in roots:
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if not module.name.endswith(("__main__", "_child")):
            importlib.import_module(module.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Public names and style.


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} needs a docstring"
    public = module.__all__
    assert len(set(public)) == len(public), f"{name}.__all__ repeats a name"
    missing = [n for n in public if not hasattr(module, n)]
    assert not missing, f"{name}.__all__ names what {name} does not have"
    bare = [
        n
        for n in public
        if (inspect.isclass(getattr(module, n)) or inspect.isfunction(getattr(module, n)))
        and not inspect.getdoc(getattr(module, n))
    ]
    assert not bare, f"these of {name} need docstrings"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_is_a_package(package: str) -> None:
    folders = {file.parent for file in sources(package)}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").is_file()] == []


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_modules_and_functions_are_short() -> None:
    long = []
    for file in sources(*PACKAGES):
        text = file.read_text()
        name = str(file.relative_to(ROOT))
        if (lines := len(text.splitlines())) > MODULE_LINES:
            long.append(f"{name}: {lines} lines, at most {MODULE_LINES}")
        for function in functions(ast.parse(text)):
            first = function.body[0]
            if ast.get_docstring(function) is not None and len(function.body) > 1:
                first = function.body[1]
            lines = (function.end_lineno or 0) - first.lineno + 1
            if lines > FUNCTION_LINES:
                long.append(f"{name}: {function.name} has {lines} lines, at most {FUNCTION_LINES}")
    assert not long, "\n".join(long)


def texts() -> list[Path]:
    """Every file under version control, or every file where this is no checkout."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        found = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        hidden = (".venv", ".git", "build", "dist")
        found = [f for f in ROOT.rglob("*") if f.relative_to(ROOT).parts[0] not in hidden]
    return [file for file in found if file.is_file()]


def test_no_place_of_one_machine_in_any_text() -> None:
    """No path of the machine it was written on, no package registry's host."""
    folders = ("work", "root", "home/[a-z]", "tmp/[a-z]")
    hosts = (r"pypi", r"pythonhosted", r"debian", r"download\.pytorch", r"npmjs")
    pattern = re.compile(
        "|".join(
            [rf"(?<![\w.)}}\]\"'*-])/(?:{'|'.join(folders)})\b"]
            + [rf"\b(?:[a-z]+\.)*{host}\.(?:org|com)\b" for host in hosts]
        )
    )
    found = []
    for file in texts():
        if file.suffix in (".safetensors", ".png", ".npz", ".onnx", ".gz"):
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found, "\n".join(found)


def test_no_pickles() -> None:
    """Nothing is read that can run code."""
    pattern = re.compile(
        r"^\s*(import|from) (pickle|joblib|dill|shelve)\b|allow_pickle=True|weights_only=False",
        re.MULTILINE,
    )
    assert [n for n in names(sources(*PACKAGES)) if pattern.search((ROOT / n).read_text())] == []


# Dependencies.


def requirements(*extras: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    return [Requirement(text) for items in lists for text in items]


def test_every_import_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(r.name) for r in requirements("verify")}
    undeclared = set()
    for file in sources(*PACKAGES):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in (name.split(".")[0] for name in modules):
                if module in sys.stdlib_module_names or module in PACKAGES:
                    continue
                if canonicalize_name(DISTRIBUTIONS.get(module, module)) not in declared:
                    undeclared.add(f"{file.relative_to(ROOT)}: {module}")
    assert not undeclared, "\n".join(sorted(undeclared))


def test_each_dependency_has_its_reason() -> None:
    text = (ROOT / "docs/dependencies.md").read_text().split("## From the system")[0]
    reasons = set(re.findall(r"^\| `([\w.-]+)`", text, re.MULTILINE))
    wanted = {r.name for r in requirements("verify", "test") if r.name != "hwgen"}
    assert reasons == wanted


def test_constraints_pin_everything_that_is_installed() -> None:
    """The closure of the dependencies, tests included, is pinned, at the versions in use."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    assert list(pinned) == sorted(pinned)
    problems = []
    todo = [(r, r.extras) for r in requirements("verify", "test") if r.name != "hwgen"]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed; run make setup")
            continue
        if name not in pinned:
            if not name.startswith(("nvidia-", "cuda-", "triton")):  # pinned by torch itself
                problems.append(f"{name} is not pinned")
        elif found.version not in pinned[name]:
            problems.append(f"{name} is {found.version}, and the pin is {pinned[name]}")
        for extra in {"", *extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for inner in map(Requirement, found.requires or ()):
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    todo.append((inner, inner.extras))
    assert not problems, "\n".join(sorted(set(problems)))


# The command line and the texts about it.


def test_modules_run_where_the_working_folder_is_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hwgen.cli", "--version"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_links_between_the_documents_lead_somewhere() -> None:
    broken = []
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            if not (file.parent / link).exists():
                broken.append(f"{file.relative_to(ROOT)}: {link}")
    assert not broken, "\n".join(broken)


def test_documents_name_targets_that_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"^(?:\| `)?make (\w+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named <= targets, name
        assert {"demo", "test"} & named, name


@pytest.mark.parametrize("script", [".ci/run", ".ci/setup"])
def test_scripts_parse_and_stop_at_errors(script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
    assert "set -euo pipefail" in (ROOT / script).read_text()
    assert os.access(ROOT / script, os.X_OK)


def test_readme_lists_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hwgen.cli", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    listed = re.findall(r"^\| `hwgen (\w+)`", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert listed == re.findall(r"^    (\w+)  ", done.stdout, re.MULTILINE)


def test_readme_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert 1 <= len([line for line in example.splitlines() if line.strip()]) <= 12
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
