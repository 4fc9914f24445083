import json
import subprocess
import sys

import pytest

from fedray.cli import main
from fedray.doctor.packages import Package


def told(capsys, *arguments):
    """The exit code, and what was printed on either stream."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fresh_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_version_is_the_packages(capsys):
    assert told(capsys, "--version") == (0, "fedray 0.1.0\n", "")


def test_help_shows_commands_to_copy(capsys):
    code, out, _ = told(capsys, "--help")
    assert code == 0
    assert "fedray run examples/quickstart.yaml --out runs/first" in out
    assert "fedray plan examples/quickstart.yaml" in out


@pytest.mark.parametrize("command", ["run", "plan", "report", "resume", "check", "doctor", "export"])
def test_every_command_explains_itself(capsys, command):
    code, out, _ = told(capsys, command, "--help")
    assert code == 0
    assert f"{command} [OPTIONS]" in out


def test_a_command_that_does_not_exist_is_a_mistake(capsys):
    code, _, err = told(capsys, "train")
    assert code == 2
    assert "train" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.yaml"], "There is no configuration file nowhere.yaml; give the path of a YAML file."),
        (["--set", "sed=1"], "There is no key 'sed'; did you mean seed?"),
        (["--set", "seed=x"], "seed must be a whole number, found the text 'x'."),
        (["--set", "seed"], "An override is key=value, such as rounds.num_rounds=5; found 'seed'."),
        (
            ["--set", "runtime=local", "--address", "10.0.0.1:6379"],
            "ray.address has no effect with runtime: local; drop it or set runtime: on_ray.",
        ),
        (["--set", "task=/nowhere/t.py"], "task names a file that does not exist: /nowhere/t.py."),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, capsys, arguments, sentence):
    file = tmp_path / "a.yaml"
    file.write_text("seed: 0\n")
    named = arguments if arguments[0].endswith(".yaml") else [str(file), *arguments]
    code, out, err = told(capsys, "run", *named, "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert err.startswith("fedray: ")
    assert err.endswith(f"{sentence}\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_plan_refuses_the_same_mistakes(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("runtime: spark\n")
    code, _, err = told(capsys, "plan", str(file), "--format", "json")
    assert code == 2
    assert err == f"fedray: {file}: runtime must be one of local, on_ray, found the text 'spark'.\n"


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path, capsys):
    file, out = tmp_path / "a.yaml", tmp_path / "out"
    file.write_text("seed: 0\n")
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    code, _, err = told(capsys, "run", str(file), "--out", str(out))
    assert code == 2
    assert "is not empty; name a new folder, or continue the run in it with: fedray resume" in err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text("seed: 0\n")
    code, _, err = told(capsys, "run", str(file), "--out", str(file))
    assert code == 2
    assert "is a file; give the name of a new folder for the run." in err


@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_folder_without_a_run_cannot_be_continued_or_reported(tmp_path, capsys, command):
    code, _, err = told(capsys, command, str(tmp_path))
    assert code == 2
    assert err == f"fedray: {tmp_path} holds no run (no config.yaml); give a folder that fedray run wrote.\n"


def test_help_and_the_configuration_load_neither_torch_nor_ray():
    code = (
        "import sys, fedray\n"
        "assert 'pydantic' not in sys.modules\n"
        "fedray.load_config({'seed': 1}); import fedray.cli\n"
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow', 'matplotlib', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ran = fresh_python(code)
    assert ran.returncode == 0, ran.stderr


def test_a_name_that_fedray_does_not_have_is_refused_by_naming_those_it_has():
    ran = fresh_python("import fedray; fedray.trian")
    assert "module 'fedray' has no attribute 'trian'; it has Config" in ran.stderr


def test_python_offers_what_the_command_line_does():
    ran = fresh_python("import fedray; print([callable(getattr(fedray, n)) for n in fedray.__all__])")
    assert ran.stdout.count("True") == 11, ran.stderr


def test_a_process_ends_with_the_exit_code():
    ran = fresh_python("import sys; from fedray.cli import main; sys.exit(main(['plan', 'nowhere.yaml']))")
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr


def examined(monkeypatch, core):
    """The doctor as it is, on a machine that has these packages and is quickly measured."""
    monkeypatch.setattr("fedray.doctor.examination.core_packages", lambda: core)


def test_a_doctor_who_misses_something_says_what_and_ends_with_1(capsys, monkeypatch):
    core = (Package(name="torch", found=None, minimum="2.13", extra="", use="core"),)
    examined(monkeypatch, core)
    code, out, _ = told(capsys, "doctor")
    assert code == 1
    assert "Missing, and needed: torch 2.13 or newer (not installed)." in " ".join(out.split())
    code, out, _ = told(capsys, "doctor", "--format", "json")
    assert code == 1
    found = json.loads(out)
    assert found["missing"] == ["torch 2.13 or newer (not installed)"]
    assert found["machine"]["cores"] >= 1


def test_a_doctor_who_misses_nothing_ends_with_0(capsys, monkeypatch):
    examined(monkeypatch, ())
    monkeypatch.setattr("fedray.doctor.examination._devices", lambda machine: ())
    monkeypatch.setattr("fedray.doctor.examination.measure_resident", lambda: "not now")
    code, out, _ = told(capsys, "doctor")
    assert code == 0
    assert "Everything that fedray needs is here." in out
