import ast
import itertools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

# The words that stand for nothing in particular; a name says what the thing is.
BANNED = re.compile(r"Manager|Handler|Helper|Util|Wrapper|Base$|Base[A-Z]|Data$|Info$")
# What a policy may know: values of the deciding floors. It never sees a tensor, an actor or the engine.
POLICY_MAY_IMPORT = {
    *("assignment", "codec_names", "cost", "errors", "known", "menu", "policy", "seeds", "trained", "units"),
    "width",
}


def modules(repository, *folders):
    found = sorted(path for folder in folders for path in (repository / folder).rglob("*.py"))
    assert found, f"no modules in {folders}"
    return found


def contracts(repository):
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {contract["id"]: contract for contract in settings["contracts"]}


def committed(repository):
    """Files that git knows, or would take; everything outside a git checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("needs a git checkout to know which files are committed")
    return [path for name in listed.stdout.splitlines() if (path := repository / name).is_file()]


# Shape.


def test_every_module_has_under_400_lines(repository):
    long = {
        str(path.relative_to(repository)): lines
        for path in modules(repository, "fedray", "policies", "tests")
        if (lines := len(path.read_text().splitlines())) >= 400
    }
    assert long == {}


def test_no_class_is_named_after_nothing_in_particular(repository):
    names = [
        (path.name, node.name)
        for path in modules(repository, "fedray", "policies")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and BANNED.search(node.name)
    ]
    assert names == []


@pytest.mark.parametrize("name", ["RayManager", "BaseRule", "RuleBase", "TaskWrapper", "ClientData", "Utils"])
def test_the_search_for_such_names_finds_them(name):
    assert BANNED.search(name)


@pytest.mark.parametrize("name", ["Backbone", "Baseline", "DataSection", "Information"])
def test_the_search_for_such_names_leaves_others_alone(name):
    assert not BANNED.search(name)


def test_no_function_passes_on_arbitrary_keywords(repository):
    # One that ignores them is called by a library that decides what it passes.
    found = [
        f"{path.name}:{node.lineno} **{node.args.kwarg.arg}"
        for path in modules(repository, "fedray", "policies")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
        if any(isinstance(n, ast.Name) and n.id == node.args.kwarg.arg for n in ast.walk(node))
    ]
    assert found == []


def test_no_parameter_comes_from_the_environment_or_from_a_guessed_attribute(repository):
    found = []
    for path in modules(repository, "fedray", "policies"):
        for node in ast.walk(ast.parse(path.read_text())):
            # Ray and CUDA are started by environment variables; everything else is a key or an argument.
            reads = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            if reads and path.name not in ("on_ray.py", "zero.py", "load.py"):
                found.append(f"{path.name}:{node.lineno} reads the environment")
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            if named == "getattr" and len(node.args) == 3:
                found.append(f"{path.name}:{node.lineno} getattr with a default")
    assert found == []


def test_a_package_that_only_groups_modules_stays_empty_enough_to_import(repository):
    # The contracts of training lie below the models only as long as importing them imports nothing else.
    tree = ast.parse((repository / "fedray/training/__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_nothing_committed_names_a_path_or_a_host_of_one_machine(repository):
    # Put together here so that this file does not contain them.
    words = [f"/{folder}/" for folder in ("work", "root", "home")]
    words += ["pypi" + ".org", "pythonhosted" + ".org", "download.py" + "torch.org"]
    found = []
    for path in committed(repository):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(repository)}: {word}" for word in words if word in text]
    assert found == []


# Floors.


@pytest.fixture(scope="session")
def tree(repository, tmp_path_factory):
    """A copy of the code that may be broken."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copytree(repository / "fedray", copy / "fedray", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(repository / "policies", copy / "policies", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", copy)
    return copy


def lint(tree, contract=None):
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as c; c()"
    command = [sys.executable, "-c", code, "--no-cache", *(["--contract", contract] if contract else [])]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


def test_the_floors_hold(tree):
    ran = lint(tree)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# Each contract with one line that breaks it: where it is written, and what it is.
BREACHES = {
    "floors": ("fedray/units.py", "import fedray.policy"),
    "training": ("fedray/training/packed.py", "import fedray.training.audit"),
    "values": ("fedray/training/task.py", "import peft"),
    "torch-free": ("fedray/policy.py", "import torch"),
    "settings": ("fedray/server/settings.py", "import torch"),
    "ray": ("fedray/runtime/local.py", "import ray.util"),
    "deepspeed": ("fedray/training/train.py", "import deepspeed"),
    "policies": ("fedray/scheduler.py", "import policies"),
}


@pytest.mark.parametrize("contract", BREACHES)
def test_a_breach_of_each_contract_is_caught(tree, contract):
    name, line = BREACHES[contract]
    module = tree / name
    sound = module.read_text()
    try:
        module.write_text(f"{sound}\n{line}\n")
        ran = lint(tree, contract)
    finally:
        module.write_text(sound)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "BROKEN" in ran.stdout


def test_every_contract_is_broken_above(repository):
    assert set(BREACHES) == set(contracts(repository))


@pytest.mark.parametrize("folder", ["fedray", "fedray/training"])
def test_a_module_without_a_place_in_the_order_is_caught(tree, folder):
    stray = tree / folder / "stray.py"
    try:
        stray.write_text('"""Nobody gave this a floor."""\n')
        ran = lint(tree, {"fedray": "floors", "fedray/training": "training"}[folder])
    finally:
        stray.unlink()
    assert ran.returncode == 1
    assert f"{folder.replace('/', '.')}.stray" in ran.stdout


def test_every_floor_below_the_line_is_kept_from_torch(repository):
    settings = contracts(repository)
    floors = [[name.strip(" ()") for name in layer.split("|")] for layer in settings["floors"]["layers"]]
    below = itertools.dropwhile(lambda layer: "agreed" not in layer, floors)
    named = {f"fedray.{name}" for layer in below for name in layer}
    assert named == set(settings["torch-free"]["source_modules"])


def test_policies_know_values_only(repository):
    found = []
    for path in modules(repository, "policies"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                root, _, rest = name.partition(".")
                known = root in sys.stdlib_module_names or root in ("numpy", "scipy")
                if not known and not (root == "fedray" and rest in POLICY_MAY_IMPORT):
                    found.append(f"{path.name}: {name}")
    assert found == []


# What is shipped.


@pytest.fixture(scope="session")
def wheel(repository, tmp_path_factory):
    """The names in a wheel, built offline from a copy so that the checkout stays clean."""
    copy = tmp_path_factory.mktemp("wheel")
    for name in ("fedray", "policies", "cluster_configs"):
        shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(repository / name, copy)
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(copy)],
        cwd=copy, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    with zipfile.ZipFile(copy / ran.stdout.split()[-1]) as archive:
        return set(archive.namelist())


def test_the_wheel_carries_every_module(repository, wheel):
    missing = {str(path.relative_to(repository)) for path in modules(repository, "fedray")} - wheel
    assert missing == set()


@pytest.mark.parametrize("folder", ["policies", "cluster_configs"])
def test_the_wheel_carries_policies_and_cluster_configs(repository, wheel, folder):
    here = {
        f"fedray_shipped/{path.relative_to(repository)}"
        for path in (repository / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert here
    assert here <= wheel


def test_the_wheel_carries_the_licence_and_nothing_of_the_tests(wheel):
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert not [name for name in wheel if name.split("/")[0] not in ("fedray", "fedray_shipped")
                and ".dist-info/" not in name]  # fmt: skip


def test_every_direct_requirement_is_pinned(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["dev"], *extras["server"], *extras["testing"]]
    pinned = {
        _normal(line.split("==")[0])
        for line in (repository / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    assert {_normal(re.split(r"[<>=!~ \[]", r)[0]) for r in required} <= pinned


def test_pins_are_exact_versions_from_an_index(repository):
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()
