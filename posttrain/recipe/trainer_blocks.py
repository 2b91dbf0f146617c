"""Keys of TRL's config classes; docs/make_trainer_blocks.py writes this (`make docs`)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from posttrain.recipe.trainer import TrainerBlock

DPOLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
SchedulerType = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
OptimizerNames = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adafactor",
    "adamw_anyprecision",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "ademamix",
    "sgd",
    "adagrad",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "ademamix_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "stable_adamw",
]
IntervalStrategy = Literal["no", "steps", "epoch"]
DebugOption = Literal["underflow_overflow", "tpu_metrics_debug"]


class SharedBlock(TrainerBlock):
    """The keys that all trainers share."""

    per_device_train_batch_size: int = Field(default=8, ge=1)
    """The batch size per device for training."""
    num_train_epochs: float = 3.0
    """Total number of training epochs to perform."""
    max_steps: int = -1
    """Number of optimizer steps; -1 leaves it to num_train_epochs."""
    learning_rate: float = Field(default=1e-06, ge=0)
    """The initial learning rate for AdamW."""
    lr_scheduler_type: SchedulerType = "linear"
    """The learning rate scheduler type to use."""
    lr_scheduler_kwargs: dict[str, Any] | str | None = None
    """Additional parameters for the lr_scheduler, such as {'num_cycles': 1} for cosine with hard
    restarts."""
    warmup_steps: float = 0
    """Number of steps for a linear warmup from 0 to `learning_rate`."""
    optim: OptimizerNames = "adamw_torch_fused"
    """The optimizer to use."""
    optim_args: str | None = None
    """Optional arguments supplied to optimizers such as AnyPrecisionAdamW, AdEMAMix, and GaLore."""
    weight_decay: float = 0.0
    """Weight decay coefficient applied by the optimizer."""
    adam_beta1: float = 0.9
    """The exponential decay rate for the first moment estimates (momentum) in Adam-based
    optimizers."""
    adam_beta2: float = 0.999
    """The exponential decay rate for the second moment estimates (variance) in Adam-based
    optimizers."""
    adam_epsilon: float = 1e-08
    """Epsilon value for numerical stability in Adam-based optimizers."""
    optim_target_modules: str | list[str] | None = None
    """The target modules to optimize."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Number of update steps to accumulate gradients before performing a backward/update pass."""
    average_tokens_across_devices: bool = True
    """Whether or not to average tokens across devices."""
    max_grad_norm: float = 1.0
    """Maximum gradient norm for gradient clipping."""
    label_smoothing_factor: float = 0.0
    """Label smoothing factor to prevent overconfidence."""
    tf32: bool | None = None
    """Enable TF32 mode on Ampere and newer GPUs."""
    gradient_checkpointing: bool = True
    """Enable gradient checkpointing to trade compute for memory."""
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = None
    """Keyword arguments passed to `gradient_checkpointing_enable()`."""
    torch_compile: bool = False
    """Compile the model using `torch.compile()` for faster training."""
    torch_compile_backend: str | None = None
    """Backend for `torch.compile()`."""
    torch_compile_mode: str | None = None
    """Compilation mode for `torch.compile()`."""
    use_liger_kernel: bool = False
    """Enable Liger Kernel optimizations: transformers patches the model's layers with Liger's
    Triton kernels."""
    liger_kernel_config: dict[str, bool] | None = None
    """Configuration for Liger Kernel."""
    use_cache: bool = False
    """Whether the model keeps its key-value cache in training."""
    neftune_noise_alpha: float | None = None
    """If not None, activates NEFTune noise embeddings."""
    torch_empty_cache_steps: int | None = None
    """Number of steps to wait before calling `torch.<device>.empty_cache()`."""
    logging_strategy: IntervalStrategy = "steps"
    """The logging strategy to adopt during training."""
    logging_steps: float = 1.0
    """Steps between two rows of metrics.jsonl, or below 1 their share of the run."""
    logging_first_step: bool = False
    """Whether to log the first `global_step` or not."""
    log_on_each_node: bool = True
    """When doing a multinode distributed training, whether to log once per node or just once on the
    main node."""
    include_num_input_tokens_seen: str | bool = "no"
    """Whether to track the number of input tokens seen."""
    log_level: Literal["detail", "debug", "info", "warning", "error", "critical", "passive"] = (
        "passive"
    )
    """Logging level for the main process."""
    log_level_replica: Literal[
        "detail", "debug", "info", "warning", "error", "critical", "passive"
    ] = "warning"
    """Logging level for replica processes in distributed training."""
    report_to: str | list[str] | None = "none"
    """Services that the metrics are reported to besides metrics.jsonl."""
    project: str = "huggingface"
    """The name of the project to use for logging."""
    trackio_space_id: str | None = None
    """Hugging Face Space id for live Gradio-based Trackio logging (read/write Bucket access)."""
    trackio_bucket_id: str | None = None
    """Optional HF Bucket id when using a Trackio Space; if unset, Trackio picks a default."""
    trackio_static_space_id: str | Literal[False] | None = None
    """Static read-only Trackio Space over the Bucket (stable model-card links)."""
    eval_delay: float = 0
    """Number of epochs or steps to wait for before the first evaluation can be performed, depending
    on the eval_strategy."""
    per_device_eval_batch_size: int = 8
    """The batch size per device (GPU/TPU core/CPU) for evaluation."""
    prediction_loss_only: bool = False
    """When performing evaluation and generating predictions, only returns the loss."""
    eval_do_concat_batches: bool = True
    """Whether to recursively concat inputs/losses/labels/predictions across batches."""
    eval_use_gather_object: bool = False
    """Whether to run recursively gather object in a nested list/tuple/dictionary of objects from
    all devices."""
    eval_accumulation_steps: int | None = None
    """Number of predictions steps to accumulate the output tensors for, before moving the results
    to the CPU."""
    include_for_metrics: list[str] = Field(default=[])
    """Include additional data in the `compute_metrics` function."""
    batch_eval_metrics: bool = False
    """Break eval metrics calculation into batches to save memory."""
    save_strategy: Literal["no", "steps", "epoch"] = "steps"
    """The checkpoint save strategy to adopt during training."""
    save_steps: float = 0.2
    """Steps between two checkpoints, or below 1 their share of the run."""
    save_on_each_node: bool = False
    """When doing multi-node distributed training, whether to save models and checkpoints on each
    node, or only on the main one."""
    save_total_limit: int | None = 2
    """Maximum number of checkpoints to keep."""
    enable_jit_checkpoint: bool = False
    """Enable JIT checkpointing on SIGTERM signal for graceful termination on preemptible
    workloads."""
    metric_for_best_model: str | None = None
    """Metric to use for comparing models when `load_best_model_at_end=True`."""
    greater_is_better: bool | None = None
    """Whether higher metric values are better."""
    ignore_data_skip: bool = False
    """When resuming training, skip fast-forwarding through the dataset to reach the previous
    state."""
    restore_callback_states_from_checkpoint: bool = False
    """Whether to restore the callback states from the checkpoint."""
    full_determinism: bool = False
    """Whether to call enable_full_determinism instead of set_seed for reproducibility in
    distributed training."""
    accelerator_config: dict[str, Any] | str | None = None
    """Configuration for the internal Accelerate integration."""
    dataloader_drop_last: bool = False
    """Drop the last incomplete batch if it is not divisible by the batch size."""
    dataloader_num_workers: int = Field(default=0, ge=0)
    """Number of subprocesses to use for data loading (PyTorch only)."""
    dataloader_persistent_workers: bool = False
    """If True, the data loader will not shut down the worker processes after a dataset has been
    consumed once."""
    dataloader_prefetch_factor: int | None = None
    """Number of batches loaded in advance by each worker."""
    dataloader_multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    """The multiprocessing start method to use for data loading workers ('fork', 'spawn', or
    'forkserver')."""
    dataloader_in_order: bool = True
    """If True (default), the data loader yields batches in the order workers were dispatched."""
    label_names: list[str] | None = None
    """The list of keys in your dictionary of inputs that correspond to the labels."""
    train_sampling_strategy: Literal[
        "random", "sequential", "group_by_length", "batch_rebalance"
    ] = "random"
    """Sampler for training: 'random' (default), 'sequential', 'group_by_length', or
    'batch_rebalance'."""
    length_column_name: str = "length"
    """Column name for precomputed lengths."""
    ddp_find_unused_parameters: bool | None = None
    """When using distributed training, the value of the flag `find_unused_parameters` passed to
    `DistributedDataParallel`."""
    ddp_bucket_cap_mb: int | None = None
    """When using distributed training, the value of the flag `bucket_cap_mb` passed to
    `DistributedDataParallel`."""
    ddp_broadcast_buffers: bool | None = None
    """When using distributed training, the value of the flag `broadcast_buffers` passed to
    `DistributedDataParallel`."""
    ddp_static_graph: bool | None = None
    """When using distributed training, the value of the flag `static_graph` passed to
    `DistributedDataParallel`."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"] | None = None
    """The backend to use for distributed training."""
    ddp_timeout: int = 1800
    """The timeout for `torch.distributed.init_process_group` calls (in seconds)."""
    fsdp: str | None = None
    """Enable PyTorch Fully Sharded Data Parallel (FSDP) for distributed training."""
    fsdp_config: dict[str, Any] | str | None = None
    """Tuning for FSDP (used only when `fsdp` is enabled)."""
    deepspeed: dict[str, Any] | str | None = None
    """Enable DeepSpeed integration."""
    debug: str | list[DebugOption] = ""
    """Enable one or more debug features."""
    skip_memory_metrics: bool = True
    """Whether to skip adding memory profiler reports to metrics."""
    router_aux_loss_coef: float | None = None
    """Coefficient of the load-balancing auxiliary loss for Mixture-of-Experts (MoE) models, added
    to the training loss with this weight."""
    pad_to_multiple_of: int | str | None = "auto"
    """If set, the sequences will be padded to a multiple of this value."""


class SFTBlock(SharedBlock):
    """The keys of trl.SFTConfig."""

    config_class: ClassVar[str] = "SFTConfig"

    learning_rate: float = Field(default=2e-05, ge=0)
    """The initial learning rate for AdamW."""
    auto_find_batch_size: bool = False
    """Whether to find a batch size that will fit into memory automatically through exponential
    decay, avoiding CUDA Out-of-Memory errors."""
    dataset_num_proc: int | None = None
    """Number of processes to use for processing the dataset."""
    eos_token: str | None = None
    """Token used to indicate the end of a turn or sequence."""
    max_length: int | None = Field(default=1024, ge=2)
    """Maximum length of the tokenized sequence."""
    shuffle_dataset: bool = False
    """Whether to shuffle the dataset."""
    packing: bool = False
    """Whether to group multiple sequences into fixed-length blocks to improve computational
    efficiency and reduce padding."""
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] = "bfd"
    """Strategy for packing sequences."""
    padding_free: bool = False
    """Whether to perform forward passes without padding by flattening all sequences in the batch
    into a single continuous sequence."""
    eval_packing: bool | None = None
    """Whether to pack the eval dataset."""
    loss_type: Literal["nll", "dft", "chunked_nll"] = "nll"
    """Type of loss to use."""
    activation_offloading: bool = False
    """Whether to offload the activations to the CPU."""
    pad_token: str | None = None
    """Token used for padding."""


class GRPOBlock(SharedBlock):
    """The keys of trl.GRPOConfig."""

    config_class: ClassVar[str] = "GRPOConfig"

    disable_dropout: bool = False
    """Whether to disable dropout in the model."""
    cast_lm_head_to_fp32: bool = False
    """Whether to cast the language modeling head of the policy and reference models to float32."""
    num_generations: int = Field(default=8, ge=2)
    """Number of generations to sample."""
    max_completion_length: int = Field(default=512, ge=1)
    """Maximum length of the generated completion."""
    pad_to_multiple_of: int | str | None = "auto"
    """If set, the prompts ids and completions ids will be padded to a multiple of this value."""
    generation_batch_size: int | None = Field(default=None, ge=1)
    """Batch size to use for generation."""
    steps_per_generation: int | None = Field(default=None, ge=1)
    """Number of steps per generation."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature for sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Float that controls the cumulative probability of the top tokens to consider."""
    beta: float = 0.0
    """KL coefficient."""
    num_iterations: int = Field(default=1, ge=1)
    """Number of iterations per batch (denoted as mu in the algorithm)."""
    epsilon: float = 0.2
    """Epsilon value for clipping."""
    delta: float | None = None
    """Enables the upper clipping bound in two-sided GRPO loss when set to a float."""
    epsilon_high: float | None = None
    """Upper-bound epsilon value for clipping."""
    sapo_temperature_neg: float = 1.05
    """Temperature for tokens with non-positive advantage scores used in the `sapo` loss
    function."""
    sapo_temperature_pos: float = 1.0
    """Temperature for tokens with positive advantage scores used in the `sapo` loss function."""
    vespo_k_pos: float = 2.0
    """k parameter for positive advantages, it is the power exponent in the VESPO loss."""
    vespo_lambda_pos: float = 3.0
    """lambda parameter for positive advantages, it is the decay factor in the VESPO loss."""
    vespo_k_neg: float = 3.0
    """k parameter for negative advantages, it is the power exponent in the VESPO loss."""
    vespo_lambda_neg: float = 2.0
    """lambda parameter for negative advantages, it is the exponential decay factor in the VESPO
    loss."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Controls whether importance sampling ratios are computed at the `'token'` or `'sequence'`
    level."""
    scale_rewards: Literal["group", "batch", "none"] | bool = "group"
    """Specifies the scaling strategy for rewards."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"] = (
        "dapo"
    )
    """Specifies the loss formulation to use."""
    mask_truncated_completions: bool = False
    """When enabled, truncated completions are excluded from the loss calculation, preventing them
    from being incorrectly penalized and introducing noise during training."""
    top_entropy_quantile: float = 1.0
    """rho parameter from Beyond the 80/20 Rule."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy regularization term in the loss."""
    use_adaptive_entropy: bool = False
    """Whether to use adaptive entropy control, introduced in Skywork-OR1
    (https://huggingface.co/papers/2505.22312)."""
    entropy_coef_min: float = 0.0
    """Lower bound for the entropy coefficient when using adaptive entropy control."""
    entropy_coef_max: float = 1.0
    """Upper bound for the entropy coefficient when using adaptive entropy control."""
    entropy_coef_delta: float = 0.005
    """Step size for adjusting the entropy coefficient during adaptive entropy control."""
    entropy_target: float = 0.2
    """Target mean per-token entropy (nats) for adaptive entropy control."""
    max_tool_calling_iterations: int | None = None
    """Maximum number of tool-calling turns when training an agent."""
    off_policy_mask_threshold: float | None = None
    """Threshold for off-policy sequence masking."""
    use_bias_correction_kl: bool = True
    """Whether to multiply the KL term by the importance sampling ratio, so that the KL gradient
    becomes the unbiased reverse-KL gradient, as described in the DeepSeek-V3.2 paper."""
    log_completions: bool = False
    """Whether to log a sample of (prompt, completion) pairs every `logging_steps` steps."""
    log_multimodal: bool = True
    """Whether to log multimodal content (images, videos, etc.) together with completions."""
    num_completions_to_print: int | None = None
    """Number of completions to print with `rich`."""
    log_unique_prompts: bool = False
    """Whether to log unique prompts."""


class DPOBlock(SharedBlock):
    """The keys of trl.DPOConfig."""

    config_class: ClassVar[str] = "DPOConfig"

    num_train_epochs: float = 1.0
    """Total number of training epochs to perform."""
    auto_find_batch_size: bool = False
    """Whether to find a batch size that will fit into memory automatically through exponential
    decay, avoiding CUDA Out-of-Memory errors."""
    disable_dropout: bool = True
    """Whether to disable dropout in the model and reference model."""
    dataset_num_proc: int | None = None
    """Number of processes to use for processing the dataset."""
    max_length: int | None = Field(default=1024, ge=2)
    """Maximum length of the tokenized sequence."""
    padding_free: bool = False
    """Whether to perform forward passes without padding by flattening all sequences in the batch
    into a single continuous sequence."""
    precompute_ref_log_probs: bool = False
    """Whether to precompute the reference model log probabilities for the entire training dataset
    before training."""
    precompute_ref_batch_size: int | None = None
    """Batch size to use when precomputing reference model log probabilities."""
    loss_type: DPOLoss | Annotated[list[DPOLoss], Field(min_length=1)] = Field(default=["sigmoid"])
    """Type of loss to use."""
    loss_weights: list[float] | None = None
    """List of loss weights for multi-loss combinations."""
    ld_alpha: float | None = None
    """alpha parameter from the LD-DPO paper, which controls the weighting of the verbose token log-
    probabilities in responses."""
    f_divergence_type: str = "reverse_kl"
    """f-divergence regularizer between policy and reference (f-DPO paper)."""
    f_alpha_divergence_coef: float = 0.5
    """alpha coefficient for the alpha-divergence u^-alpha regularizer, used only when
    `f_divergence_type='alpha_divergence'`."""
    label_smoothing: float = 0.0
    """Label smoothing parameter used in Robust DPO and EXO."""
    beta: float = Field(default=0.1, ge=0)
    """Parameter controlling the deviation from the reference model."""
    use_weighting: bool = False
    """Whether to apply WPO-style weighting to preference pairs using the policy's length-normalized
    sequence probabilities."""
    discopop_tau: float = 0.05
    """tau/temperature parameter from the DiscoPOP paper, which controls the shape of the log-ratio
    modulated loss when using `loss_type='discopop'`."""
    activation_offloading: bool = False
    """Whether to offload the activations to the CPU."""
    pad_token: str | None = None
    """Token used for padding."""
