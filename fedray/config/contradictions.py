"""Values that contradict each other, each with its sentence."""

from collections.abc import Callable

from fedray.config.data_sections import NaturalId
from fedray.config.idle import trains_blocks
from fedray.config.sections import Config


def _shares(config: Config) -> str | None:
    held_out = config.data.test_share + config.data.validation_share
    if held_out < 1:
        return None
    return (
        f"data.test_share and data.validation_share leave no rows to train on: together they are "
        f"{held_out:g}, and must be below 1."
    )


def _unseen(config: Config) -> str | None:
    unseen = config.data.unseen_clients
    if unseen < 1 or unseen == int(unseen):
        return None
    return f"data.unseen_clients must be a whole number or a share below 1, found {unseen:g}."


def _trained_clients(config: Config) -> str | None:
    data, asked, devices = config.data, config.rounds.clients_per_round, config.fleet.num_clients
    if devices is not None and asked > devices:
        return (
            f"rounds.clients_per_round asks for {asked} clients, and fleet.num_clients is {devices}; "
            "ask for fewer or give more."
        )
    if (
        devices is not None
        or isinstance(data.partitioner, NaturalId)
        or data.unseen_clients != int(data.unseen_clients)
    ):
        return None
    training = data.num_clients - int(data.unseen_clients)
    if asked <= training:
        return None
    return (
        f"rounds.clients_per_round asks for {asked} clients, and only {training} train "
        f"(data.num_clients {data.num_clients} less data.unseen_clients {int(data.unseen_clients)}); "
        "ask for fewer or give more."
    )


def _menu(config: Config) -> str | None:
    if trains_blocks(config) or config.menu.head_only:
        return None
    return "menu offers nothing: menu.ranks is empty and menu.head_only is false; give one of them."


def _recompute(config: Config) -> str | None:
    if trains_blocks(config) or config.menu.recompute == (False,):
        return None
    return "menu.recompute has nothing to recompute without menu.ranks; drop it or give ranks."


def _rounded(config: Config) -> str | None:
    asked = list(config.menu.int8_activations)
    if not config.menu.cuts or 0 in asked:
        return None
    return (
        f"menu.int8_activations = {asked} leaves nothing to cut, for what crosses a cut has a codec of its "
        "own; list 0 beside, or drop menu.cuts."
    )


def _local_rules(config: Config) -> str | None:
    for name, does in (
        ("proximal_mu", "holds whole models near a round's start"),
        ("tail_penalty", "is of clients that train whole models"),
    ):
        value = getattr(config.training, name)
        if value and config.menu.cuts:
            return (
                f"training.{name} = {value:g} {does}, and under menu.cuts a server trains a part of them; "
                "drop one of the two."
            )
    return None


def _variates(config: Config) -> str | None:
    training, menu = config.training, config.menu
    if not training.control_variates:
        return None
    asked = "training.control_variates"
    rates = training.learning_rate, training.head_learning_rate
    if training.optim != "sgd" or training.momentum or training.max_grad_norm is not None or 0 in rates:
        return (
            f"{asked} read a client's mean gradient off how far it went, which tells it after plain steps "
            "alone; set training.optim: sgd and max_grad_norm: null, learning rates above 0 and no momentum."
        )
    coded = [codec for codec in menu.up_codecs if codec != "none"]
    against: dict[str, bool] = {
        "menu.cuts has a server train a part of every model": bool(menu.cuts),
        f"menu.up_codecs has {', '.join(coded)}, which change it": bool(coded),
        "secure_aggregation hides it": config.secure_aggregation.masks != "none",
        f"privacy.where: {config.privacy.where} promises what they would tell": bool(config.privacy.where),
        "pace.late: join sums it in another round than it was asked in": config.pace.late == "join",
    }
    why = next((reason for reason, holds in against.items() if holds), None)
    return None if why is None else f"{asked} follow each update as it is, and {why}; drop one of the two."


def _joining(config: Config) -> str | None:
    pace = config.pace
    if pace.late == "partial" and pace.deadline_seconds is None:
        return "pace.late: partial cuts work short at a deadline; give pace.deadline_seconds."
    if pace.late != "join" or pace.goal is not None or pace.deadline_seconds is not None:
        return None
    return "pace.late: join never closes a round; give pace.goal, pace.deadline_seconds or both."


def _pace(config: Config) -> str | None:
    goal, asked = config.pace.goal, config.rounds.clients_per_round
    if goal is None or goal <= asked or config.pace.late == "join":
        return None
    return (
        f"pace.goal waits for {goal} updates, and rounds.clients_per_round asks {asked} clients only; "
        "lower the one or raise the other."
    )


def _actors(config: Config) -> str | None:
    size = config.packs.clients_per_pack
    if config.ray.clients_per_actor is None or size == 1:
        return None
    return (
        f"ray.clients_per_actor: 1 lets every client train in its own actor, and packs.clients_per_pack "
        f"trains {size} together; set packs.clients_per_pack to 1."
    )


def _whole_models(config: Config) -> str | None:
    if not config.menu.cuts or config.server.evaluation == "whole" or not config.menu.whole:
        return None
    return (
        "server.evaluation: sweep keeps the whole backbone out of every process, and menu.whole: true offers "
        "clients whole models; set menu.whole: false, or server.evaluation: whole."
    )


def _exits(config: Config) -> str | None:
    menu = config.menu
    if not menu.exits or menu.whole:
        return None
    return (
        f"menu.exits = {list(menu.exits)} are heads on blocks of a client's own, and menu.whole: false "
        "offers clients none of these; drop one of the two."
    )


def _server_link(config: Config) -> str | None:
    link = config.server_link
    if not config.menu.cuts or (link.up_bps is None and link.down_bps is None):
        return None
    return (
        "server_link is shared by what clients start from and send at last, and under menu.cuts messages of "
        "every step go over it, which are not shared out; drop one of the two."
    )


def _seeds(config: Config) -> str | None:
    seeds = [codec for codec in config.menu.up_codecs if codec.startswith("seeds")]
    if not seeds or config.privacy.where != "local":
        return None
    return (
        f"menu.up_codecs has {seeds[0]}, which tell a client's steps exactly, and privacy.where: local "
        "has it add noise to its update; drop one of the two."
    )


def _privacy(config: Config) -> str | None:
    privacy = config.privacy
    if privacy.where is None:
        return None
    if privacy.clip_norm is None:
        return f"privacy.where: {privacy.where} bounds what one client can do; give privacy.clip_norm."
    if config.menu.cuts:
        return (
            f"privacy.where: {privacy.where} protects updates, and under menu.cuts the server sees hidden "
            "states in every step, which are neither cut nor noised; drop one of the two."
        )
    if config.aggregation.clip_norm is not None:
        return (
            "aggregation.clip_norm and privacy.clip_norm both cut updates, and epsilon is of the second; "
            "drop the first."
        )
    return None


def _cut_noise(config: Config) -> str | None:
    privacy = config.privacy
    if not privacy.cut_noise_multiplier or privacy.cut_clip_norm is not None:
        return None
    return (
        f"privacy.cut_noise_multiplier = {privacy.cut_noise_multiplier:g} is in units of the norm that "
        "hidden states are cut to; give privacy.cut_clip_norm."
    )


def _membership(config: Config) -> str | None:
    data = config.data
    if not config.attacks.membership or data.test_share or data.validation_share or data.unseen_clients:
        return None
    return (
        "attacks.membership tells rows that were trained on from others, and nothing is held out; give "
        "data.test_share, data.validation_share or data.unseen_clients."
    )


def _shadows(config: Config) -> str | None:
    asked, menu = config.attacks.shadows, config.menu
    if not config.attacks.membership or not asked:
        return None
    if asked < 4 or asked % 2:
        return (
            f"attacks.shadows = {asked}: half of the shadows leave a row out, and two at least must; give an "
            "even number from 4 on, or 0 for none."
        )
    others = [kind for kind in menu.tunings if kind != "lora"]
    if others:
        return (
            f"attacks.shadows are trained with LoRA and a head, and menu.tunings has {', '.join(others)}, "
            "which change more of the model than these can; drop one of the two."
        )
    if menu.cuts and config.server.evaluation == "sweep":
        return (
            f"attacks.shadows = {asked} are whole models that a process trains, and with server.evaluation: "
            "sweep none beside the server's has all blocks; set server.evaluation: whole, or drop them."
        )
    return None


def _looked_into(config: Config) -> str | None:
    asked = [name for name in ("updates", "labels") if getattr(config.attacks, name)]
    if not asked:
        return None
    if config.secure_aggregation.masks != "none":
        return (
            f"attacks.{asked[0]} looks into single updates, and with secure_aggregation the server sees "
            "their sum alone, which gives it nothing to look into; drop one of the two."
        )
    if "labels" in asked and config.menu.cuts and 0 in config.menu.tails:
        return (
            "attacks.labels infers labels that stay with clients, and under menu.cuts without a tail they "
            "are sent up as they are; give menu.tails above 0 alone, or drop it."
        )
    if "updates" in asked and config.menu.widths != (1.0,):
        return (
            "attacks.updates looks into what whole blocks read, and menu.widths = "
            f"{list(config.menu.widths)} has clients train parts of them; drop one of the two."
        )
    return None


def _black_boxes(config: Config) -> str | None:
    tried = max(config.menu.perturbations)
    if not config.menu.cuts or not tried or config.server.mode == "replica":
        return None
    return (
        f"menu.perturbations up to {tried} under menu.cuts are black-box clients, who take the difference of "
        "two looks, and with server.mode: shared the server's blocks change between them; set server.mode: "
        "replica, or drop one of the two."
    )


def _masks(config: Config) -> str | None:
    if config.secure_aggregation.masks == "none":
        return None
    if config.menu.cuts:
        return (
            "secure_aggregation hides updates from the server, and under menu.cuts it trains a part of each "
            "itself; drop one of the two."
        )
    coded = [codec for codec in config.menu.up_codecs if codec != "none"]
    if coded:
        return (
            f"menu.up_codecs has {coded[0]}, and masked integers look like noise, which no codec makes "
            "shorter; drop it, or secure_aggregation."
        )
    if config.privacy.where == "central":
        return (
            "privacy.where: central has the server cut each update, and with secure_aggregation it sees "
            "none; set where: local, or drop one of the two."
        )
    return None


def _audited_codecs(config: Config) -> str | None:
    against = {
        "under menu.cuts a server has trained a part of each": bool(config.menu.cuts),
        "under pace.late: join a round sums updates of several": config.pace.late == "join",
    }
    why = next((reason for reason, holds in against.items() if holds), None)
    if not config.audit.codecs or why is None:
        return None
    return f"audit.codecs sums a round's updates once more as they were, and {why}; drop one of the two."


CONTRADICTIONS: tuple[Callable[[Config], str | None], ...] = (
    _shares,
    _unseen,
    _trained_clients,
    _menu,
    _recompute,
    _rounded,
    _local_rules,
    _variates,
    _exits,
    _pace,
    _joining,
    _actors,
    _whole_models,
    _server_link,
    _privacy,
    _cut_noise,
    _membership,
    _shadows,
    _looked_into,
    _black_boxes,
    _masks,
    _seeds,
    _audited_codecs,
)
