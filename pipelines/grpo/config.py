"""Options of ``jobs/grpo_gres.py`` and ``jobs/grpo_gcg.py``; the presets are in ``presets``."""

from typing import Annotated, Literal

from annotated_types import Ge

from pipelines.chats.prompts import PromptsConfig
from pipelines.chats.spec import ChatCorpusText
from pipelines.config import (
    AtLeast0,
    AtLeast1,
    ImageLimit,
    NotEmpty,
    NotNegative,
    Place,
    Positive,
    Precision,
    ShippedPlace,
    WorkerConfig,
    config,
)
from pipelines.generation.config import EngineConfig
from pipelines.grpo.learn.algorithms import AlgorithmConfig
from pipelines.grpo.observe.alarms import AlarmsConfig, ParityLimit
from pipelines.grpo.reward.components import ScoringConfig
from pipelines.training.config import (
    CheckpointsConfig,
    ExportPrecision,
    MllmEngineConfig,
    OptimizerConfig,
    TrainsMllm,
    ValidationConfig,
)
from samtok.errors import ConfigError

Seconds = Annotated[float, Ge(1)]


@config
class RewardConfig(ScoringConfig):
    """What a response is worth, and who computes it."""

    iou: bool = False
    """Also decode words and compare masks (component ``iou``); needs the mask tokenizer and its time."""
    workers: AtLeast1 = 1
    """Processes that compute rewards."""
    gpus_per_worker: NotNegative = 0.0
    """GPUs of each of them, for --reward.iou and validations: decoding masks on CPUs takes seconds an image
    with SAM2's large model."""
    kept_images: AtLeast0 = 128
    """Encoded images of validations that each of them keeps in the host's memory, 17 MB each with SAM2's
    1024 px; the others are encoded at every validation."""


@config
class RolloutConfig(EngineConfig):
    """Who samples responses, and how."""

    group_size: Annotated[int, Ge(2)] = 8
    """Responses to each prompt."""
    temperature: Positive = 1.0
    """Of the sampling. There is no top-k or top-p: both would make the learner's probabilities wrong."""
    max_new_tokens: AtLeast1 = 512
    """Longest response."""
    grammar: bool = False
    """Allow whole mask words only. Off, a broken word is possible and punished, as in the paper."""
    prompts_per_task: AtLeast1 = 8
    """Prompts that are sampled in one batch. With 1 thread and one engine this decides the numbers, the
    number of workers does not."""
    workers: AtLeast1 = 1
    """Processes that sample."""
    worker: WorkerConfig = WorkerConfig()
    precision: Precision = "float32"
    """Type of the sampling model's weights."""
    max_staleness: AtLeast0 = 0
    """Steps by which the weights behind a response may be older than those that learn from it. 0 samples and
    learns in turn; above, both run at the same time, and --algorithm.importance-cap makes up for the
    age."""
    max_failures: AtLeast0 = 8
    """Times that a dead sampling process is replaced."""
    timeout_s: Seconds = 1800.0
    """Longest time that one batch of responses may take."""

    def check(self) -> None:
        """Refuses a server, which takes no weights."""
        super().check()
        if self.engine == "http":
            raise ConfigError("--.engine http cannot take in trained weights; use hf or vllm.")


@config
class LearnerConfig(MllmEngineConfig):
    """Who learns, and how."""

    workers: AtLeast1 = 1
    """Processes that learn, joined by torch.distributed; each has a share of every step."""
    worker: WorkerConfig = WorkerConfig()
    micro_batch: AtLeast1 = 64
    """Responses of a forward and backward pass; all responses to a prompt go together where they fit."""
    micro_batch_tokens: AtLeast1 | None = None
    """Tokens that a pass computes at most, prompts and padding included, in place of --learner.micro-batch; a
    longer text goes alone. Decides memory and speed, not what is learnt."""
    max_failures: AtLeast0 = 3
    """Times that the learners are started anew from the last checkpoint after one of them died."""
    timeout_s: Seconds = 1800.0
    """Longest time of one step, after which the run ends and shows where every process stood."""


@config
class SyncConfig:
    """How weights get from learners to samplers."""

    bucket_mb: AtLeast1 = 256
    """Size of the pieces in which weights go through Ray's object store."""
    checksum: bool = True
    """Check every piece where it arrives."""


@config
class ChecksConfig:
    """Checks that stop a run that would learn from wrong numbers."""

    parity_every: AtLeast0 = 50
    """Steps between comparisons of the log-probabilities of samplers and learners on the same responses; the
    first two are before and after the first step. 0 leaves them out."""
    parity_max: Positive = 1e-4
    """Both in float32: largest difference in a token's log-probability; above, the run ends. Right engines
    stay below 1e-5, and a wrong vision encoder can stay below 0.01."""
    parity_mean: Positive = 0.03
    """One of them in bfloat16: mean absolute difference over tokens; above, the run ends."""
    image: bool = True
    """Before the first step: another image has to change the learner's log-probabilities."""
    none_edge: Literal["warn", "refuse", "off"] = "warn"
    """If the responses of the first step show that always saying "No target." would earn more than the model
    does, so that learning goes there: warn, or refuse to learn. The numbers are printed with both."""


@config
class PromptValidationConfig(ValidationConfig):
    """Validation on held-out prompts while learning."""

    chats: tuple[ChatCorpusText, ...] = ()
    """Held-out chat corpora; without any there is no validation."""
    every: AtLeast1 = 10
    """Steps between validations; there is one before the first step and one after the last."""
    prompts: AtLeast1 = 128
    """The first prompts of the corpora, each answered greedily."""
    samples: AtLeast0 = 1
    """Responses that are sampled to each of them as well, at the rollouts' temperature."""
    metric: str = "targets_sampled"
    """Metric by which the best model is kept."""
    keep: AtLeast1 = 1
    """Best models that are kept, as best-STEP/."""


@config
class GrpoConfig(TrainsMllm, ImageLimit):
    """One run of reinforcement learning. The same --out resumes it."""

    MAIN = (
        *("chats", "model", "tokenizer", "out", "steps", "prompts_per_step", "reward.weights"),
        *("algorithm.name", "rollout.group_size", "rollout.engine", "rollout.workers", "learner.workers"),
        *("learner.micro_batch", "precision", "validation.chats", "validation.every", "checkpoints.every"),
        *("seed", "limit", "max_reject_rate", "tracking", "dry_run"),
    )

    seed: AtLeast0 = 101
    """Seed of order and sampling."""
    model: ShippedPlace
    """Fine-tuned model (jobs/train_mllm.py): a folder, local or s3://, or ``tour-mllm``, which ships."""
    tokenizer: ShippedPlace
    """Mask tokenizer of the words, for pictures, validation and --reward.iou: a shipped name, a
    folder or a hub id."""
    chats: Annotated[tuple[ChatCorpusText, ...], NotEmpty]
    """Chat corpora (jobs/compose_dialogues.py): FOLDER, or uri=FOLDER,weight=2,limit=1000. The last answer of
    a chat is asked for; what comes before is given."""
    prompts: PromptsConfig = PromptsConfig()
    prompts_per_step: AtLeast1 = 16
    """Prompts of a step; each gets --rollout.group-size responses."""
    steps: AtLeast1 = 100
    """Steps."""
    reward: RewardConfig = RewardConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    precision: Precision = "float32"
    """Type of the learners' arithmetic (autocast); weights, logits and losses stay in float32."""
    export_precision: ExportPrecision = "model"
    """Type of the weights in best-N/ and final/: that of --model, mostly bfloat16, or float32 as trained."""
    placement: Literal["separate", "colocated"] = "separate"
    """Samplers and learners on GPUs of their own, or on the same ones in turn."""
    optimizer: OptimizerConfig = OptimizerConfig()
    sync: SyncConfig = SyncConfig()
    checks: ChecksConfig = ChecksConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    validation: PromptValidationConfig = PromptValidationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    trajectories_every: AtLeast0 = 10
    """Steps between those whose responses are written as a table and shown in the report; 0 writes none."""
    max_bad_steps: AtLeast1 = 5
    """Steps in a row with a gradient that is no number before the run fails; each is skipped."""
    num_cpus: AtLeast1 | None = None
    """Logical CPUs of a Ray that the job starts; by default the machine's, and at least enough."""
    debug: Literal["off", "rollout-only", "train-only", "replay"] = "off"
    """rollout-only samples and scores, and learns nothing; train-only learns from the responses of --replay
    in place of sampling; replay computes losses of --replay and changes nothing."""
    replay: Place | None = None
    """Trajectories of an earlier run: its folder, or one of its Parquet files."""

    def check(self) -> None:
        """Checks what several parts decide together."""
        super().check()
        if (self.debug in ("train-only", "replay")) != (self.replay is not None):
            raise ConfigError(
                "--.debug train-only and --.debug replay need --.replay, and nothing else does."
            )
        if self.lora.dropout:
            raise ConfigError(
                f"--.lora.dropout must be 0, got {self.lora.dropout:g}: samplers have none, so learners "
                "would learn from other probabilities than were sampled from."
            )
        if self.placement == "colocated" and self.rollout.max_staleness:
            raise ConfigError(
                "--.placement colocated lets samplers and learners take turns on a GPU, so "
                f"--.rollout.max-staleness must be 0, got {self.rollout.max_staleness}."
            )
        if self.rollout.max_staleness and self.algorithm.importance_cap is None:
            raise ConfigError(
                f"--.rollout.max-staleness {self.rollout.max_staleness} learns from responses of older "
                "weights as if they were of the newest. Set --.algorithm.importance-cap, which weighs tokens "
                "for it (2 is usual), or --.rollout.max-staleness 0."
            )
        prompts, task = self.prompts_per_step, self.rollout.prompts_per_task
        if prompts % task:
            share = max(size for size in range(1, task + 1) if prompts % size == 0)
            raise ConfigError(
                f"--.prompts-per-step {prompts} is not a multiple of --.rollout.prompts-per-task {task}; "
                f"take {prompts // task * task or task} prompts, or tasks of {share}."
            )
        if prompts < self.learner.workers * self.algorithm.inner_steps:
            raise ConfigError(
                f"--.prompts-per-step {prompts} are too few for --.learner.workers {self.learner.workers} x "
                f"--.algorithm.inner-steps {self.algorithm.inner_steps}."
            )
        if self.slots < self.rollout.workers:
            raise ConfigError(
                f"--.rollout.workers {self.rollout.workers} cannot all work: {self.slots} batches of prompts "
                f"are in flight at most ({self.tasks_per_step} per step, --.rollout.max-staleness "
                f"{self.rollout.max_staleness}); lower --.rollout.prompts-per-task, or take fewer workers."
            )

    @property
    def parity(self) -> ParityLimit:
        """The limit that checks and alarms refer to."""
        if self.precision == self.rollout.precision == "float32":
            return ParityLimit("max", self.checks.parity_max)
        return ParityLimit("mean", self.checks.parity_mean)

    @property
    def tasks_per_step(self) -> int:
        """Batches of prompts that a step samples."""
        return self.prompts_per_step // self.rollout.prompts_per_task

    @property
    def slots(self) -> int:
        """Batches of prompts that may be in flight at once; this is what bounds staleness."""
        return (self.rollout.max_staleness + 1) * self.tasks_per_step
