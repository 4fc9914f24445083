import pytest
from pydantic import BaseModel

from fedray.config import Config, load_config
from fedray.config.idle import IDLE
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


# Options without effect, and contradictions.

NO_EFFECT = [
    ({"runtime": "local", "ray": {"num_actors": 2}}, "ray.num_actors"),
    ({"packs": {"clients_per_pack": 1}, "ray": {"num_actors": 2, "clients_per_actor": 1}}, "ray.num_actors"),
    ({"ray": {"address": "h:1", "object_store_memory": 10}}, "ray.object_store_memory"),
    ({"training": {"momentum": 0.9}}, "training.momentum"),
    ({"training": {"optim": "sgd", "adam_beta2": 0.9}}, "training.adam_beta2"),
    ({"training": {"max_steps": 2, "num_train_epochs": 1}}, "training.num_train_epochs"),
    ({"menu": {"ranks": [], "head_only": True, "depths": [1]}}, "menu.depths"),
    ({"menu": {"ranks": [], "head_only": True, "lora_scale": 1.0}}, "menu.lora_scale"),
    ({"menu": {"ranks": [4], "tunings": ["full"]}}, "menu.ranks"),
    ({"menu": {"prompt_tokens": [4]}}, "menu.prompt_tokens"),
    ({"training": {"exit_distillation": 0.5}}, "training.exit_distillation"),
    ({"training": {"perturbation_scale": 0.01}}, "training.perturbation_scale"),
    ({"server": {"num_shards": 2}}, "server.num_shards"),
    ({"leakage": {"measure": True}}, "leakage.measure"),
    ({"menu": {"cuts": [1]}, "leakage": {"rows": 64}}, "leakage.rows"),
    ({"menu": {"cuts": [1]}, "leakage": {"measure": True, "search_rows": 4}}, "leakage.search_rows"),
    ({"privacy": {"cut_clip_norm": 1.0}}, "privacy.cut_clip_norm"),
    ({"attacks": {"rows": 64}}, "attacks.rows"),
    ({"attacks": {"membership": True, "shadow_epochs": 5}}, "attacks.shadow_epochs"),
    ({"attacks": {"clients": 2}}, "attacks.clients"),
    ({"attacks": {"search_steps": 9}}, "attacks.search_steps"),
    ({"menu": {"widths": [1.0, 0.5]}}, "menu.widths"),
    ({"menu": {"ranks": [], "tunings": ["full"], "weight_bits": [8]}}, "menu.weight_bits"),
    ({"menu": {"ranks": [], "tunings": ["full"], "width_window": "salient"}}, "menu.width_window"),
    ({"menu": {"tails": [1]}}, "menu.tails"),
    ({"menu": {"cuts": [1]}, "server": {"interconnect_bps": 1e9}}, "server.interconnect_bps"),
    ({"menu": {"cuts": [1]}, "server": {"order": "queue", "min_riders": 2}}, "server.min_riders"),
    ({"menu": {"cuts": [1]}, "server": {"min_riders": 2}}, "server.min_riders"),
    ({"menu": {"cuts": [1]}, "server": {"window_seconds": 2}}, "server.window_seconds"),
    ({"menu": {"cuts": [1]}, "server": {"deepspeed": "zero3"}}, "server.deepspeed"),
    ({"data": {"split": "train"}}, "data.split"),
    ({"data": {"source": "banking77", "modules": ["email"]}}, "data.modules"),
    ({"data": {"num_clients": 8, "partitioner": {"name": "natural_id", "column": "c"}}}, "data.num_clients"),
    ({"pace": {"goal": 2, "staleness": "polynomial"}}, "pace.staleness.name"),
    ({"pace": {"goal": 2, "late": "join", "normalizer": "sum", "mixing": 0.5}}, "pace.mixing"),
    ({"actual": {"budgets_period_seconds": 10.0}}, "actual.budgets_period_seconds"),
    ({"availability": "diurnal", "dropouts": True}, "dropouts"),
    ({"aggregation": {"options": {"mode": "hetlora"}}}, "aggregation.options"),
    ({"privacy": {"clip_norm": 1.0}}, "privacy.clip_norm"),
    ({"privacy": {"delta": 1e-6}}, "privacy.delta"),
    (
        {"privacy": {"where": "local", "clip_norm": 1.0, "noise_multiplier": 0.0, "delta": 1e-6}},
        "privacy.delta",
    ),
    ({"audit": {"codecs": True}}, "audit.codecs"),
    ({"secure_aggregation": {"fraction_bits": 20}}, "secure_aggregation.fraction_bits"),
]


@pytest.mark.parametrize(("tree", "key"), NO_EFFECT)
def test_an_option_that_cannot_take_effect_is_refused(tree, key):
    assert complaint(tree).startswith(f"{key} has no effect ")
    assert "\n" not in complaint(tree)


def test_every_rule_about_options_without_effect_is_tried_above():
    tried = [key for _, key in NO_EFFECT]
    assert len(IDLE) == len(NO_EFFECT)
    for rule, key in zip(IDLE, tried, strict=True):
        assert any(key == k or key.startswith(f"{k}.") for k in rule.keys)


def test_every_key_that_a_rule_names_exists():
    known = {path for path, _ in sections()}
    assert {key for rule in IDLE for key in rule.keys} <= known


SCAFFOLDED = [
    ({"training": {"momentum": 0.9}}, "read a client's mean gradient off how far it went"),
    ({"training": {"max_grad_norm": 1.0}}, "read a client's mean gradient off how far it went"),
    ({"training": {"learning_rate": 0.0}}, "read a client's mean gradient off how far it went"),
    ({"menu": {"cuts": [1]}}, "follow each update as it is, and menu.cuts has a server train a part"),
    ({"menu": {"up_codecs": ["int8"]}}, "follow each update as it is, and menu.up_codecs has int8"),
    ({"secure_aggregation": {"masks": "pairwise"}}, "follow each update as it is, and secure_aggregation"),
    ({"privacy": {"where": "local", "clip_norm": 1.0}}, "follow each update as it is, and privacy.where"),
    ({"pace": {"late": "join", "goal": 2}}, "follow each update as it is, and pace.late: join sums it"),
]


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        (
            {"training": {"proximal_mu": 0.1}, "menu": {"cuts": [1]}},
            "training.proximal_mu = 0.1 holds whole models near a round's start, and under menu.cuts",
        ),
        *(
            (
                {
                    "training": {
                        "control_variates": True,
                        "optim": "sgd",
                        "max_grad_norm": None,
                        **changes.get("training", {}),
                    },
                    **{name: section for name, section in changes.items() if name != "training"},
                },
                f"training.control_variates {sentence}",
            )
            for changes, sentence in SCAFFOLDED
        ),
        (
            {"data": {"test_share": 0.6, "validation_share": 0.4}},
            "data.test_share and data.validation_share leave no rows to train on: together they are 1",
        ),
        (
            {"data": {"num_clients": 8, "unseen_clients": 2}, "rounds": {"clients_per_round": 7}},
            "rounds.clients_per_round asks for 7 clients, and only 6 train "
            "(data.num_clients 8 less data.unseen_clients 2)",
        ),
        ({"data": {"unseen_clients": 2.5}}, "data.unseen_clients must be a whole number or a share below 1"),
        ({"menu": {"ranks": []}}, "menu offers nothing: menu.ranks is empty and menu.head_only is false"),
        ({"pace": {"late": "partial"}}, "pace.late: partial cuts work short at a deadline; give pace.dead"),
        ({"pace": {"late": "join"}}, "pace.late: join never closes a round; give pace.goal, pace.deadline"),
        ({"pace": {"goal": 9}}, "pace.goal waits for 9 updates, and rounds.clients_per_round asks 8 clients"),
        ({"menu": {"ranks": [], "head_only": True, "recompute": [True]}}, "menu.recompute has nothing to"),
        (
            {"menu": {"cuts": [1], "int8_activations": [2]}},
            "menu.int8_activations = [2] leaves nothing",
        ),
        (
            {"menu": {"cuts": [1]}, "server_link": {"up_bps": 1e9}},
            "server_link is shared by what clients start from and send at last, and under menu.cuts",
        ),
        (
            {
                "privacy": {"where": "local", "clip_norm": 1.0},
                "menu": {"perturbations": [2], "up_codecs": ["seeds8"]},
            },
            "menu.up_codecs has seeds8, which tell a client's steps exactly, and privacy.where: local",
        ),
        ({"privacy": {"where": "local"}}, "privacy.where: local bounds what one client can do; give privacy"),
        (
            {"privacy": {"where": "central", "clip_norm": 1.0}, "menu": {"cuts": [1]}},
            "privacy.where: central protects updates, and under menu.cuts the server sees hidden states",
        ),
        (
            {"privacy": {"where": "central", "clip_norm": 1.0}, "aggregation": {"clip_norm": 2.0}},
            "aggregation.clip_norm and privacy.clip_norm both cut updates, and epsilon is of the second",
        ),
        (
            {"privacy": {"cut_noise_multiplier": 0.5}, "menu": {"cuts": [1]}},
            "privacy.cut_noise_multiplier = 0.5 is in units of the norm that hidden states are cut to; give",
        ),
        (
            {"attacks": {"membership": True}, "data": {"test_share": 0.0}},
            "attacks.membership tells rows that were trained on from others, and nothing is held out",
        ),
        *(
            (
                {"attacks": {"membership": True, "shadows": found}},
                f"attacks.shadows = {found}: half of the shadows leave a row out, and two at least",
            )
            for found in (2, 5)
        ),
        (
            {
                "attacks": {"membership": True, "shadows": 4},
                "menu": {"ranks": [4], "tunings": ["lora", "full"]},
            },
            "attacks.shadows are trained with LoRA and a head, and menu.tunings has full, which change more",
        ),
        (
            {
                "attacks": {"membership": True, "shadows": 4},
                "menu": {"cuts": [1], "whole": False},
                "server": {"engine": "zero", "evaluation": "sweep"},
            },
            "attacks.shadows = 4 are whole models that a process trains, and with server.evaluation: sweep",
        ),
        (
            {"audit": {"codecs": True}, "menu": {"up_codecs": ["int8"], "cuts": [1]}},
            "audit.codecs sums a round's updates once more as they were, and under menu.cuts",
        ),
        (
            {
                "audit": {"codecs": True},
                "menu": {"up_codecs": ["int8"]},
                "pace": {"late": "join", "goal": 2},
            },
            "audit.codecs sums a round's updates once more as they were, and under pace.late: join",
        ),
        (
            {"attacks": {"labels": True}, "secure_aggregation": {"masks": "pairwise"}},
            "attacks.labels looks into single updates, and with secure_aggregation the server sees their sum",
        ),
        (
            {"attacks": {"labels": True}, "menu": {"cuts": [1]}},
            "attacks.labels infers labels that stay with clients, and under menu.cuts without a tail they",
        ),
        (
            {"attacks": {"updates": True}, "menu": {"tunings": ["full"], "ranks": [], "widths": [0.5]}},
            "attacks.updates looks into what whole blocks read, and menu.widths = [0.5] has clients train",
        ),
        (
            {"secure_aggregation": {"masks": "pairwise"}, "menu": {"cuts": [1]}},
            "secure_aggregation hides updates from the server, and under menu.cuts it trains a part",
        ),
        (
            {"secure_aggregation": {"masks": "pairwise"}, "menu": {"up_codecs": ["none", "int8"]}},
            "menu.up_codecs has int8, and masked integers look like noise, which no codec makes shorter",
        ),
        (
            {
                "secure_aggregation": {"masks": "pairwise"},
                "privacy": {"where": "central", "clip_norm": 1.0},
            },
            "privacy.where: central has the server cut each update, and with secure_aggregation it sees none",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(tree, sentence):
    assert complaint(tree).startswith(sentence)
