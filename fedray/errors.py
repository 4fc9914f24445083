"""What goes wrong in a user's hands; each message says what was asked, what was found, what to change."""


class FedrayError(Exception):
    """A mistake the user can mend; the command line prints its message as one sentence."""


class ConfigError(FedrayError):
    """A key, a value or a file of a configuration is wrong."""


class NothingFits(FedrayError):
    """No client of the fleet can run any assignment of the menu."""


class PolicyError(FedrayError):
    """A policy cannot be loaded, or answered with a decision that the scheduler refuses."""


class DoesNotFit(PolicyError):
    """A policy gave a client what does not fit it."""


class DataError(FedrayError):
    """Rows, columns or partitions are not what the task needs."""


class ModelError(FedrayError):
    """The model is of an unknown family, or does not hold what was asked of it."""


class TrainingError(FedrayError):
    """A client's training cannot go on (a loss that is not a number, for one)."""


class SimulationError(FedrayError):
    """A simulation cannot stand for a run (a replay that decides otherwise, for one)."""


class RuntimeFailure(FedrayError):
    """The cluster cannot be reached, or lost more than can be replaced."""
