import ast

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fedray.config import Config, config_to_yaml, load_config
from fedray.errors import ConfigError


def complaint(tree, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(tree, overrides)
    return str(caught.value)


def sections(model=Config, path=""):
    for name, field in model.model_fields.items():
        value = field.get_default(call_default_factory=True)
        yield f"{path}{name}", field
        if isinstance(value, BaseModel):
            yield from sections(type(value), f"{path}{name}.")


# What a file becomes.


def test_a_file_with_one_key_is_a_whole_configuration(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("seed: 3\n")
    config = load_config(file)
    assert config.seed == 3
    assert config.model.name == "minilm"


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("training: {learning_rate: 1e-3, adam_epsilon: 1E-08, weight_decay: 1}\n")
    training = load_config(file).training
    assert (training.learning_rate, training.adam_epsilon, training.weight_decay) == (0.001, 1e-8, 1.0)


def test_a_plain_text_is_the_name_of_whatever_has_one():
    config = load_config(
        {
            "model": "gpt2",
            "task": "causal_lm",
            "data": {"partitioner": "iid"},
            "fleet": "phones",
            "policy": "hetlora",
            "aggregation": "stack",
        }
    )
    parts = (config.model, config.task, config.data.partitioner)
    assert [part.name for part in parts] == ["gpt2", "causal_lm", "iid"]
    parts = (config.fleet, config.policy, config.aggregation)
    assert [part.name for part in parts] == ["phones", "hetlora", "stack"]


def test_a_value_that_reads_like_a_path_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert load_config({"policy": "mine.py"}).policy.name == str(tmp_path / "mine.py")


def test_a_hub_name_with_a_slash_stays_a_name():
    assert load_config({"model": {"name": "google/bert_uncased_L-2"}}).model.name == "google/bert_uncased_L-2"


def test_object_store_memory_may_carry_its_unit():
    assert load_config({"ray": {"object_store_memory": "2 GiB"}}).ray.object_store_memory == 2147483648


# Overrides.


def test_an_override_replaces_one_key_and_leaves_its_neighbours():
    config = load_config({"rounds": {"num_rounds": 4, "clients_per_round": 2}}, ["rounds.num_rounds=9"])
    assert (config.rounds.num_rounds, config.rounds.clients_per_round) == (9, 2)


def test_the_last_of_two_overrides_wins():
    assert load_config({}, ["seed=1", "seed=2"]).seed == 2


def test_an_override_reaches_into_a_name_written_as_a_text():
    policy = load_config({"policy": "hetlora"}, ["policy.options.gamma=0.9"]).policy
    assert (policy.name, policy.options) == ("hetlora", {"gamma": 0.9})


def test_an_override_is_yaml():
    overrides = ["menu.ranks=[2, 4]", "training.max_grad_norm=null", "training.learning_rate=2e-4"]
    config = load_config({}, overrides)
    assert config.menu.ranks == (2, 4)
    assert config.training.max_grad_norm is None
    assert config.training.learning_rate == 0.0002


def test_overrides_leave_the_callers_mapping_alone():
    tree = {"data": {"max_length": 64}}
    load_config(tree, ["data.max_length=32"])
    assert tree == {"data": {"max_length": 64}}


@pytest.mark.parametrize("override", ["seed", "=3", "training..learning_rate=1", ".seed=1"])
def test_an_override_without_a_key_or_a_value_is_refused(override):
    assert complaint({}, override) == (
        f"An override is key=value, such as rounds.num_rounds=5; found {override!r}."
    )


# Writing back.


def test_the_resolved_file_reads_back_as_the_same_configuration():
    config = load_config(
        {
            "runtime": "local",
            "training": {"optim": "sgd", "max_steps": 3},
            "data": {"partitioner": {"name": "natural_id", "column": "speaker"}, "source": "some_set"},
            "report_to": "wandb",
        }
    )
    text = config_to_yaml(config)
    again = load_config(yaml.safe_load(text))
    assert again == config
    assert config_to_yaml(again) == text


def test_the_resolved_file_holds_no_key_that_has_no_effect():
    tree = yaml.safe_load(config_to_yaml(load_config({"runtime": "local", "training": {"optim": "sgd"}})))
    assert "ray" not in tree
    assert "momentum" in tree["training"]
    assert "adam_beta1" not in tree["training"]


@settings(max_examples=25, deadline=None)
@given(
    optim=st.sampled_from(["sgd", "adamw"]),
    runtime=st.sampled_from(["local", "on_ray"]),
    max_steps=st.none() | st.integers(1, 9),
    ranks=st.lists(st.integers(1, 64), unique=True, max_size=3),
    partitioner=st.sampled_from(["iid", "dirichlet", "pathological", {"name": "natural_id", "column": "c"}]),
    source=st.sampled_from(["docstrings", "banking77"]),
    cuts=st.lists(st.integers(0, 5), unique=True, max_size=3),
)
def test_every_resolved_configuration_reads_back(optim, runtime, max_steps, ranks, partitioner, source, cuts):
    config = load_config(
        {
            "runtime": runtime,
            "training": {"optim": optim, "max_steps": max_steps},
            "menu": {"ranks": ranks, "head_only": True, "cuts": cuts},
            "data": {"partitioner": partitioner, "source": source},
        }
    )
    assert load_config(yaml.safe_load(config_to_yaml(config))) == config


def test_a_configuration_may_be_built_in_python_and_is_checked_alike():
    config = Config(runtime="local", seed=5)
    assert load_config(config, ["seed=6"]).seed == 6
    mixed = Config.model_validate({"runtime": "local", "ray": {"num_actors": 2}})
    assert complaint(mixed).startswith("ray.num_actors has no effect with runtime: local")


def test_a_server_with_sweeps_that_wait_reads_back():
    config = load_config(
        {
            "menu": {"cuts": [0, 2], "tails": [0, 1], "cut_codecs": ["none", "int8"], "whole": False},
            "server": {"num_shards": 2, "memory_bytes": "24 GiB", "min_riders": 4, "window_seconds": 1.5},
        }
    )
    assert config.server.memory_bytes == 24 * 2**30
    text = config_to_yaml(config)
    assert load_config(yaml.safe_load(text)) == config
    # Without shards beside each other nothing is gathered, and in this process DeepSpeed has no say.
    assert {"min_riders", "window_seconds", "interconnect_bps"} <= set(yaml.safe_load(text)["server"])
    assert "deepspeed" not in yaml.safe_load(text)["server"]


# Mistakes, each with its sentence.


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"sed": 1}, "There is no key 'sed'; did you mean seed?"),
        (
            {"training": {"learning_rat": 1}},
            "training has no key 'learning_rat'; did you mean training.learning_rate?",
        ),
        ({"audit": {"q": 1}}, "audit has no key 'q'; it has distinct, share, codecs."),
        (
            {"data": {"partitioner": {"name": "dirichlet", "alfa": 1.0}}},
            "data.partitioner has no key 'alfa'; did you mean data.partitioner.alpha?",
        ),
        ({"data": {"partitioner": {"name": "iid", "a": 1}}}, "data.partitioner has no key 'a'; it has name."),
        ({"data": {"partitioner": "natural_id"}}, "data.partitioner.column is missing."),
        (
            {"training": {"learning_rate": "fast"}},
            "training.learning_rate must be a number, found the text 'fast'.",
        ),
        (
            {"rounds": {"num_rounds": 2.5}},
            "rounds.num_rounds must be a whole number, found 2.5.",
        ),
        ({"rounds": {"num_rounds": 0}}, "rounds.num_rounds must be at least 1, found 0."),
        ({"rounds": {"num_rounds": True}}, "rounds.num_rounds must be a whole number, found true."),
        ({"rounds": 5}, "rounds must be a group of keys, found 5."),
        ({"dropouts": "yes"}, "dropouts must be true or false, found the text 'yes'."),
        ({"seed": None}, "seed must be a whole number, found nothing."),
        ({"menu": {"ranks": 8}}, "menu.ranks must be a list, found 8."),
        ({"menu": {"ranks": [8, "16"]}}, "menu.ranks[1] must be a whole number, found the text '16'."),
        (
            {"menu": {"depths": [2, "most"]}},
            "menu.depths[1] must be a whole number or all, found the text 'most'.",
        ),
        ({"menu": {"depths": []}}, "menu.depths needs at least one value, found an empty list."),
        ({"menu": {"ranks": [4, 4]}}, "menu.ranks lists 4 twice."),
        ({"menu": {"cuts": [1, -1]}}, "menu.cuts[1] must be at least 0, found -1."),
        (
            {"menu": {"cuts": [1]}, "server": {"order": "random"}},
            "server.order must be one of sweep, queue, found the text 'random'.",
        ),
        ({"menu": {"dtypes": ["fp16"]}}, "menu.dtypes[0] must be one of fp32, bf16, found the text 'fp16'."),
        ({"runtime": "ray"}, "runtime must be one of local, on_ray, found the text 'ray'."),
        (
            {"data": {"partitioner": "shards"}},
            "data.partitioner.name must be one of iid, dirichlet, natural_id, pathological, "
            "found the text 'shards'.",
        ),
        (
            {"data": {"partitioner": {"alpha": 1.0}}},
            "data.partitioner.name is missing.",
        ),
        ({"data": {"partitioner": {"name": "natural_id"}}}, "data.partitioner.column is missing."),
        ({"fleet": {"memory_share": 1.5}}, "fleet.memory_share must be at most 1, found 1.5."),
        (
            {"training": {"learning_rate": float("nan")}},
            "training.learning_rate must be a finite number, found nan.",
        ),
        (
            {"ray": {"object_store_memory": "plenty"}},
            "ray.object_store_memory must be a number of bytes: 'plenty' is not a quantity; "
            "write a number with one of",
        ),
        ({"policy": {"options": {}}}, "policy.name is missing."),
    ],
)
def test_a_wrong_key_gets_one_sentence(tree, sentence):
    assert complaint(tree).startswith(sentence)
    assert "\n" not in complaint(tree)


def test_a_file_that_a_key_names_and_that_is_not_there_is_refused():
    assert complaint({"policy": "/nowhere/mine.py"}) == (
        "policy names a file that does not exist: /nowhere/mine.py."
    )


def test_every_mistake_gets_its_own_line_with_the_files_name(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("sed: 1\nrounds: {num_rounds: many}\n")
    lines = complaint(file).splitlines()
    assert lines == [
        f"{file}: rounds.num_rounds must be a whole number, found the text 'many'.",
        f"{file}: There is no key 'sed'; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "the file is empty; the shortest configuration is 'seed: 0'."),
        ("- 1\n", "a configuration is a group of 'key: value' lines, found [1]."),
        ("a: [1\nb: 2\n", "not YAML at line 2:"),
        ("seed: 1\nseed: 2\n", "not YAML at line 2: the key 'seed' is given twice."),
        ("seed: !!python/object:os.system 1\n", "not YAML at line 1: could not determine a constructor"),
    ],
)
def test_a_file_that_is_not_a_configuration_says_where(tmp_path, content, sentence):
    file = tmp_path / "a.yaml"
    file.write_text(content)
    assert complaint(file).startswith(f"{file}: {sentence}")


def test_a_missing_a_binary_and_a_folder_file_are_refused(tmp_path):
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert complaint("nowhere.yaml") == (
        "There is no configuration file nowhere.yaml; give the path of a YAML file."
    )
    assert complaint(binary) == f"{binary} is not a text file; give the path of a YAML file."
    assert complaint(tmp_path) == f"{tmp_path} cannot be read: Is a directory; give a YAML file."


def test_every_key_says_what_it_means():
    silent = [path for path, field in sections() if not field.description]
    assert silent == []


def test_every_key_is_read_by_somebody(repository):
    # An option that nobody reads would be accepted and ignored.
    read = {
        node.attr
        for path in (repository / "fedray").rglob("*.py")
        if "config" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert {path for path, _ in sections() if path.rpartition(".")[2] not in read} == set()


def test_a_configuration_cannot_change_under_a_run():
    with pytest.raises(ValueError, match="frozen"):
        load_config({}).seed = 4
