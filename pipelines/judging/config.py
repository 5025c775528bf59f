"""Settings of a judge that jobs share; a job has it as ``judge``."""

from typing import Literal

from pipelines.config import AtLeast1, NotNegative, Place, Positive, Precision, Share, ShippedPlace, config
from pipelines.generation.config import require_url
from samtok.errors import ConfigError


@config
class JudgeConfig:
    """Who judges texts, and where judgements are kept."""

    kind: Literal["none", "replay", "http", "hf"] = "none"
    """none judges nothing; replay takes all judgements from --.record; http asks a server of OpenAI's chat
    interface (--.url); hf a model of texts in this process (--.folder)."""
    model: str | None = None
    """http: its name at the server, by default the only one that is served. replay: the judge's name in the
    record, by default the only one there."""
    url: str | None = None
    """http: where the server is, such as http://127.0.0.1:8000. The key is taken from OPENAI_API_KEY."""
    folder: ShippedPlace | None = None
    """hf: checkpoint folder, local or s3://, or hub id, with a chat template."""
    record: Place | None = None
    """JSON lines with every judgement, local or s3://. What it has is not asked again, failed ones apart; new
    ones go to its end. By default beside the results."""
    wording: Place | None = None
    """JSON object with texts of the benchmark's questions in place of ours, such as the published ones."""
    max_failed: Share = 0.02
    """The job fails, with its results written, if a larger share of the judgements failed."""
    concurrency: AtLeast1 = 8
    """http: requests under way at once."""
    batch_size: AtLeast1 = 8
    """hf: prompts per pass."""
    temperature: NotNegative | None = None
    """Of the sampling; 0 takes the likeliest token. By default that of the benchmark's protocol."""
    max_tokens: AtLeast1 | None = None
    """Longest reply in tokens; by default that of the benchmark's protocol."""
    answer_s: Positive = 120.0
    """http: seconds that one answer is waited for."""
    precision: Precision = "bfloat16"
    """hf: type of the model's weights and arithmetic."""

    def check(self) -> None:
        """Refuses what a kind needs and has not, or has and does not need."""
        for kind, name in (("http", "url"), ("hf", "folder")):
            if (self.kind == kind) != (getattr(self, name) is not None):
                raise ConfigError(f"--.kind {kind} and --.{name} go together; give both or neither.")
        if self.kind == "replay" and self.record is None:
            raise ConfigError("--.kind replay needs --.record, the file with the judgements.")
        if self.model is not None and self.kind not in ("http", "replay"):
            raise ConfigError("--.model is for --.kind http and replay; leave it out.")
        if self.url is not None:
            require_url(self.url, "--.url")
