"""What a configuration says about the work of a client: what it may be given, and how it trains."""

from typing import Annotated, Literal

from pydantic import Field

from fedray.assignment import Dtype
from fedray.config.kinds import AtLeastOne, Count, Many, NotNegative, PartShare, Positive, Section, Tunings
from fedray.width import Axis


class MenuSection(Section):
    """The knobs whose combinations are the assignments on offer."""

    ranks: Many[Count] = Field((8,), description="LoRA ranks of a trained block.")
    depths: AtLeastOne[Count | Literal["all"]] = Field(
        ("all",), description="Trained blocks, counted from the top; all is every block."
    )
    tunings: Tunings = Field(
        ("lora",),
        description="A block's LoRA factors, all its weights, its biases or IA3's vectors; a prompt, or a "
        "prefix in every block.",
    )
    prompt_tokens: AtLeastOne[Count] = Field((20,), description="Lengths of prompts and prefixes.")
    widths: AtLeastOne[Annotated[float, Field(gt=0, le=1)]] = Field(
        (1.0,), description="Shares of every block's width that a client may hold; 1 is the whole model."
    )
    width_axes: AtLeastOne[Axis] = Field(
        ("ffn",), description="What is narrowed: heads, head_dim (inside each), ffn, hidden (with the norms)."
    )
    width_window: Literal["prefix", "salient"] = Field(
        "prefix",
        description="Which units are kept: the leading ones, or those with the largest pretrained weights.",
    )
    exits: Many[Count] = Field(
        (),
        description="Depths behind which a head of their own is trained; as many leading blocks are offered "
        "alone, too.",
    )
    perturbations: AtLeastOne[Annotated[int, Field(ge=0)]] = Field(
        (0,),
        description="Random directions a step of a forward-only client, without a backward pass; 0 has one. "
        "Under a cut a black-box client: hidden states go up at each look, and a loss alone comes down.",
    )
    recompute: AtLeastOne[bool] = Field((False,), description="Activation checkpointing, off and on.")
    int8_activations: AtLeastOne[Annotated[int, Field(ge=0)] | Literal["all"]] = Field(
        (0,),
        description="Blocks with a backward pass, from the lowest, that keep what it needs in 8 bits; all is "
        "every one.",
    )
    dtypes: AtLeastOne[Dtype] = Field(("fp32",), description="Of the frozen weights and the arithmetic.")
    sparsities: AtLeastOne[Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.0,), description="Shares of zeros among the weights of a client's frozen linears, the smallest."
    )
    weight_bits: AtLeastOne[Literal["all", 8, 4]] = Field(
        ("all",), description="Of the frozen linears of a client's blocks: rounded to 8 or 4, or all of them."
    )
    per_device_train_batch_size: AtLeastOne[Count] = Field((8,), description="Rows in one local step.")
    target_modules: AtLeastOne[str] | None = Field(
        None, description="Adapted linears by the last part of their name; the family's usual if absent."
    )
    lora_scale: Positive = Field(2.0, description="lora_alpha / rank, one factor for all ranks.")
    train_lora_a: bool | None = Field(
        None,
        description="Train LoRA's A beside B, or leave it as drawn; as the aggregation needs if absent.",
    )
    head_only: bool = Field(False, description="Also offer the head alone, without an adapter.")
    cuts: Many[Annotated[int, Field(ge=0)]] = Field(
        (), description="Leading blocks a client keeps while the server runs the others; none if empty."
    )
    tails: AtLeastOne[Annotated[int, Field(ge=0)]] = Field(
        (0,), description="Trailing blocks it keeps too, with the head and the labels (the U-shape)."
    )
    cut_codecs: AtLeastOne[str] = Field(
        ("none",), description="What crosses a cut is sent as: none, bf16, int8, int4, top1 to top99 (%)."
    )
    local_loss: AtLeastOne[bool] = Field(
        (False,), description="Train below the cut against a head there, no gradient from the server."
    )
    whole: bool = Field(True, description="Offer whole models beside those with a cut.")
    up_codecs: AtLeastOne[str] = Field(
        ("none",),
        description="An update is sent as: none, bf16, int8, int4, top1 to top99 (%), rank1, rank2, "
        "...; of forward-only clients seeds1, seeds2, ... (as many shared seeds).",
    )
    down_codecs: AtLeastOne[str] = Field(
        ("none",), description="What a client starts from is sent as: the same names."
    )


class TrainingSection(Section):
    """What a client does locally."""

    optim: Literal["adamw", "sgd"] = Field("adamw", description="The local optimizer.")
    learning_rate: NotNegative = Field(1e-3, description="Step size of the first round.")
    head_learning_rate: NotNegative | None = Field(
        None, description="Step size of a classifier's head, which starts from nothing; the same if absent."
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How it falls from round to round; within a round it stays."
    )
    proximal_mu: NotNegative | None = Field(
        None,
        description="FedProx: mu / 2 times the squared distance to a round's start is added to the loss; as "
        "the policy has it if absent.",
    )
    tail_penalty: NotNegative | None = Field(
        None,
        description="HetLoRA: this times the norms of a client's last LoRA ranks is added to the loss; as "
        "the policy has it if absent.",
    )
    tail_gamma: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="HetLoRA: the last ranks of r are those from floor(gamma r) on; 0.99 if absent."
    )
    exit_distillation: NotNegative | None = Field(
        None,
        description="DepthFL: weight of what the heads at a client's exits learn from each other; as the "
        "policy has it if absent.",
    )
    exit_ramp_rounds: Count | None = Field(
        None, description="DepthFL: rounds over which that weight rises to its whole; 300 if absent."
    )
    control_variates: bool = Field(
        False,
        description="SCAFFOLD: gradients are corrected by what the server and a client know of each other; "
        "needs plain sgd.",
    )
    perturbation_scale: Positive = Field(
        1e-3, description="How far a forward-only client looks to both sides along a direction."
    )
    weight_decay: NotNegative = Field(0.0, description="Decoupled for adamw, added to the gradient for sgd.")
    momentum: PartShare = Field(0.0, description="Of sgd.")
    adam_beta1: PartShare = Field(0.9, description="Of adamw: decay of the first moment.")
    adam_beta2: PartShare = Field(0.999, description="Of adamw: decay of the second moment.")
    adam_epsilon: Positive = Field(1e-8, description="Of adamw: added to the denominator.")
    max_grad_norm: Positive | None = Field(1.0, description="Each client's gradient is cut to this norm.")
    num_train_epochs: Count = Field(1, description="Passes over a client's own rows in a round.")
    max_steps: Count | None = Field(None, description="Local steps in a round, in place of epochs.")
