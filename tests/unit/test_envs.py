"""The conda environments, as far as they can be tested without a channel: parsed strictly, solved against a stub
channel with and without ``__cuda``, compared with the constraints and with what the rules' scripts import.

What is not tested: that conda-forge has these builds today, and that its packages work together.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

rattler = pytest.importorskip("rattler", reason="pip install py-rattler")
SolverError = pytest.importorskip("rattler.exceptions").SolverError

ROOT = Path(__file__).parents[2]
NAMES = ("embed", "data", "report")
CONDA_TO_PYPI = {"pytorch": "torch", "pytorch-cpu": "torch"}
NOT_FROM_PYPI = {"python", "pip", "cuda-version"}
IMPORTED_AS = {"torch": "torch", "fair-esm": "esm", "huggingface-hub": "huggingface_hub"} | {
    "scikit-learn": "sklearn",
    "faiss-cpu": "faiss",
    "umap-learn": "umap",
}
OPTIONAL = {"tqdm", "triton"}  # imported where they are there; Triton comes with torch for CUDA
BY_NAME = {"merge_embeddings": "virnucpro/storage/tables"}  # the formats, whose registry imports them by their names
BESIDE = {"esm"}  # no rule imports it; it is what load_esm2_model gives its users, and chunk files record its version


class StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand once only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice in {keys}"
        return super().construct_mapping(node, deep)


def read(name: str) -> tuple[list[str], list[str]]:
    """The conda specs and the pip pins of an environment."""
    content = yaml.load((ROOT / "envs" / f"{name}.yaml").read_text(encoding="utf-8"), StrictLoader)
    assert list(content) == ["channels", "dependencies"]
    assert content["channels"] == ["conda-forge", "nodefaults"]
    *specs, last = content["dependencies"]
    assert isinstance(last, dict)
    assert list(last) == ["pip"]
    assert all(isinstance(spec, str) for spec in [*specs, *last["pip"]])
    return specs, last["pip"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "envs" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.lower().split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def name_of(spec: str) -> str:
    return str(rattler.MatchSpec(spec, strict=True).name.normalized)


@pytest.mark.parametrize("name", NAMES)
def test_every_conda_spec_parses_strictly_and_is_pinned(name: str) -> None:
    specs, _ = read(name)
    for spec in specs:
        parsed = rattler.MatchSpec(spec, strict=True)
        assert re.fullmatch(r"=?\d+(\.\d+)+(\.\*)?", str(parsed.version)), f"{spec} is not pinned ({parsed.version})"
    assert len({name_of(spec) for spec in specs}) == len(specs)


@pytest.mark.parametrize("name", NAMES)
def test_conda_pins_admit_the_tested_versions(name: str) -> None:
    tested = constraints()
    for spec in read(name)[0]:
        package = name_of(spec)
        if package not in NOT_FROM_PYPI:
            version = tested[CONDA_TO_PYPI.get(package, package)]
            assert str(rattler.MatchSpec(spec).version).strip("=*.") == version, spec


def requirements(package: str) -> set[str]:
    """What an installed package asks for, without extras."""
    parsed = map(Requirement, requires(package) or [])
    return {
        canonicalize_name(each.name) for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})
    }


@pytest.mark.parametrize("name", NAMES)
def test_pip_pins_are_the_constraints_and_complete(name: str) -> None:
    """Every requirement of a pip package is pinned too, by pip or by conda: nothing floats."""
    specs, pins = read(name)
    tested = constraints()
    for pin in pins:
        package, version = pin.split("==")
        assert tested[canonicalize_name(package)] == version, pin
    there = {CONDA_TO_PYPI.get(name_of(spec), name_of(spec)) for spec in specs}
    there |= {canonicalize_name(pin.split("==")[0]) for pin in pins}
    for pin in pins:
        for requirement in requirements(pin.split("==")[0]):
            assert requirement in there, f"{pin} needs {requirement}"
    assert pins == sorted(pins)


def environments_of_scripts() -> dict[str, str]:
    """Each rule's script and the environment that its rule names."""
    found = {}
    for rules in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        for body in re.split(r"^(?:rule|checkpoint) \w+:", rules.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            script = re.search(r'script:\s+"\.\./scripts/(\w+)\.py"', body)
            environment = re.search(r'conda:\s+"\.\./\.\./envs/(\w+)\.yaml"', body)
            if script is not None:
                assert environment is not None, f"{rules.name}: {script.group(1)} names no environment"
                found[script.group(1)] = environment.group(1)
    return found


SCRIPTS = environments_of_scripts()


def test_every_script_has_an_environment_and_every_environment_a_script() -> None:
    assert set(SCRIPTS) == {path.stem for path in (ROOT / "workflow" / "scripts").glob("*.py")}
    assert set(SCRIPTS.values()) == set(NAMES)


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports at its top or in a function; not those for type checkers alone."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            continue  # a package's lazy names; who uses one is seen to import it
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo.extend(ast.iter_child_nodes(node))


def third_party(script: str) -> set[str]:
    """Top-level names of what a script imports, directly or through the package."""
    todo, done, found = [ROOT / "workflow" / "scripts" / f"{script}.py"], set(), set()
    if script in BY_NAME:
        todo += (ROOT / BY_NAME[script]).glob("*.py")
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "virnucpro":
                for end in range(1, len(parts) + 1):
                    place = ROOT.joinpath(*parts[:end])
                    todo += [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]
            elif parts[0] not in sys.stdlib_module_names:
                found.add(parts[0])
    return found - OPTIONAL


def modules(name: str) -> set[str]:
    specs, pins = read(name)
    packages = {CONDA_TO_PYPI.get(name_of(spec), name_of(spec)) for spec in specs} - NOT_FROM_PYPI
    packages |= {canonicalize_name(pin.split("==")[0]) for pin in pins}
    return {IMPORTED_AS.get(package, package) for package in packages}


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_holds_what_its_scripts_import_and_no_more(name: str) -> None:
    needed = set().union(*(third_party(script) for script, environment in SCRIPTS.items() if environment == name))
    assert needed <= modules(name)
    indirect = set().union(*(requirements(pin.split("==")[0]) for pin in read(name)[1]))
    assert modules(name) - needed <= indirect | BESIDE


WITHOUT = """
import importlib.abc, sys
refused = set(sys.argv[1].split(","))
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not in this environment", name=name)
sys.meta_path.insert(0, Refuse())
exec(sys.argv[2])
"""


def start(scripts: Iterable[str], refused: set[str]) -> subprocess.CompletedProcess[str]:
    """Run the import lines of scripts where some packages cannot be imported."""
    lines = []
    for script in scripts:
        tree = ast.parse((ROOT / "workflow" / "scripts" / f"{script}.py").read_text(encoding="utf-8"))
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        lines += [ast.unparse(node) for node in imports if getattr(node, "module", None) != "__future__"]
    command = [sys.executable, "-c", WITHOUT, ",".join(sorted(refused)), "\n".join(lines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_scripts_start_where_only_their_environments_packages_are(name: str) -> None:
    others = set().union(*map(modules, NAMES)) | OPTIONAL | {"snakemake", "pandas", "yaml", "jsonschema"}
    scripts = [script for script, environment in sorted(SCRIPTS.items()) if environment == name]
    assert scripts
    done = start(scripts, others - modules(name))
    assert done.returncode == 0, done.stderr


def test_a_script_does_not_start_without_its_packages() -> None:
    done = start(["split_proteins"], {"pyarrow"})
    assert "pyarrow is not in this environment" in done.stderr


# A stub of conda-forge: the packages that the environments ask for, with the dependencies that decide
# between CPU and CUDA as in the recipes of conda-forge/pytorch-cpu-feedstock and cuda-version-feedstock (2026-08):
# CUDA builds need __cuda and have the higher build numbers; cuda-version is bound to the driver's major version.


def record(name: str, version: str, build: str = "0", number: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "version": version, "build": build, "build_number": number, "depends": [], **more}


def torch_builds(version: str) -> Iterator[dict[str, Any]]:
    for kind, number in (("cpu", 0), ("cuda129", 200), ("cuda130", 200)):
        build = f"{kind}_mkl_py311_habc_{number}"
        depends = ["python >=3.11,<3.12.0a0", f"libtorch {version} {kind}_mkl_habc_{number}"]
        library: list[str] = []
        if kind != "cpu":
            major = int(kind[4:6])
            library = [f"cuda-version >={major}.{kind[6]},<{major + 1}"]
            depends += ["__cuda", *library]
        meta, other = ("pytorch-cpu", "pytorch-gpu") if kind == "cpu" else ("pytorch-gpu", "pytorch-cpu")
        bound = [f"{meta} {version}", f"{other} <0.0a0"]
        yield record("pytorch", version, build, number, depends=depends, constrains=bound)
        yield record("libtorch", version, f"{kind}_mkl_habc_{number}", number, depends=library, constrains=bound)
        yield record(
            meta, version, f"{kind}_mkl_h0_{number}", number, depends=[f"pytorch {version} {kind}_mkl*{number}"]
        )


def records() -> Iterator[dict[str, Any]]:
    for version in ("3.11.9", "3.11.14", "3.12.11"):
        yield record("python", version, "h1_cpython")
    for version in ("2.12.1", "2.13.0"):
        yield from torch_builds(version)
    for version in ("12.9", "13.0"):
        yield record("cuda-version", version, constrains=[f"__cuda >={version.split('.')[0]}"])
    for name, versions in {"pip": ["26.0.1", "26.1"], "numpy": ["2.4.6", "2.5.1"], "h5py": ["3.16.0"]}.items():
        for version in versions:
            depends = ["python"] if name == "pip" else ["python >=3.11,<3.12.0a0"]
            yield record(name, version, depends=depends)


@pytest.fixture
def channel(tmp_path: Path) -> str:
    for subdir, content in (("linux-64", records()), ("noarch", iter(()))):
        packages = {
            f"{each['name']}-{each['version']}-{each['build']}.conda": {**each, "subdir": subdir, "sha256": "0" * 64}
            for each in content
        }
        (tmp_path / "stub" / subdir).mkdir(parents=True)
        (tmp_path / "stub" / subdir / "repodata.json").write_text(
            json.dumps({"info": {"subdir": subdir}, "packages": {}, "packages.conda": packages, "repodata_version": 1})
        )
    return (tmp_path / "stub").as_uri()


def solve(channel: str, specs: list[str], cuda: str | None) -> dict[str, tuple[str, str]]:
    """The version and build of each package that the solver takes; ``cuda`` is the driver's version."""
    virtual = [
        rattler.GenericVirtualPackage(rattler.PackageName("__glibc"), rattler.Version("2.28"), rattler.BuildString("0"))
    ]
    if cuda is not None:
        virtual.append(
            rattler.GenericVirtualPackage(
                rattler.PackageName("__cuda"), rattler.Version(cuda), rattler.BuildString("0")
            )
        )
    found = asyncio.run(
        rattler.solve(
            [channel],
            [rattler.MatchSpec(spec, strict=True) for spec in specs],
            platforms=["linux-64", "noarch"],
            virtual_packages=virtual,
        )
    )
    return {each.name.normalized: (str(each.version), str(each.build)) for each in found}


@pytest.mark.parametrize("cuda", [None, "12.2", "12.9", "13.0"])
@pytest.mark.parametrize("name", NAMES)
def test_solves_on_machines_with_and_without_a_gpu(channel: str, name: str, cuda: str | None) -> None:
    found = solve(channel, read(name)[0], cuda)
    assert found["python"][0] == "3.11.14"
    if name == "report":
        assert "pytorch" not in found
        return
    assert found["pytorch"][0] == "2.13.0"
    expected = "cuda129" if name == "embed" and cuda is not None else "cpu"
    assert found["pytorch"][1].startswith(expected)
    assert found["libtorch"][1].startswith(expected)


def test_a_driver_for_cuda_11_is_too_old_for_the_cuda_builds(channel: str) -> None:
    with pytest.raises(SolverError):
        solve(channel, read("embed")[0], "11.8")


def test_the_stub_can_say_no(channel: str) -> None:
    for spec in ("pytorch-gpu =2.13.0", "pytorch =9.9", "no-such-package"):
        with pytest.raises(SolverError):
            solve(channel, [spec], None)
    assert solve(channel, ["pytorch-gpu =2.13.0"], "13.0")["pytorch"][1].startswith("cuda")
