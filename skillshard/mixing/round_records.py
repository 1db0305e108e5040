"""The records that a ledger collects while a run trains: observations, rounds, long waits, steerings, resumes, and the first packed block."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from skillshard.loss import LossKind, MeasuredOn
from skillshard.mixing.ledger_record import LedgerRecord, check_numbers


class ObservationRecord(LedgerRecord):
    """An observation: losses of a model that has seen `draw` samples of the stream."""

    schema_version: Literal["skillshard/observation/3"] = Field("skillshard/observation/3", alias="schema")
    step: int = Field(ge=0, description="optimizer steps taken")
    draw: int = Field(ge=0, description="number of samples of the mixed stream that the model has seen")
    losses: dict[str, float | None] = Field(
        description="evaluation skill -> nats per token; null if not a finite number"
    )
    loss: LossKind = Field(description="reduction and mask of the losses")
    measured_on: MeasuredOn = Field(
        description="samples of the losses: held-out samples, or the batches of the training"
    )
    num_samples: dict[str, int] | None = Field(
        description="evaluation skill -> number of measured samples, 0 for a loss of the observation before; null if the report gave no numbers"
    )
    standard_errors: dict[str, float | None] | None = Field(
        description="evaluation skill -> standard error in nats per token, null if unknown; null if the report gave no errors"
    )
    left_out: bool = Field(
        description="whether the policy does not see the losses, because a loss is not a finite number"
    )
    previous: str = Field(description="checksum of the observation before, or of run.json for the first observation")

    @model_validator(mode="after")
    def _fits(self) -> "ObservationRecord":
        bad = [name for name, loss in self.losses.items() if loss is not None and not 0 <= loss < float("inf")]
        if bad or (not self.left_out and None in self.losses.values()):
            raise ValueError(f"losses must be finite numbers >= 0: {self.losses}")
        for name, numbers in (("num_samples", self.num_samples), ("standard_errors", self.standard_errors)):
            if numbers is not None and (
                set(numbers) != set(self.losses)
                or any(number is not None and number < 0 for number in numbers.values())
            ):
                raise ValueError(f"{name} must be numbers >= 0 of the same skills as losses: {numbers}")
        return self


class RoundRecord(LedgerRecord):
    """A round: a stretch of the stream with a single weight vector."""

    schema_version: Literal["skillshard/round/2"] = Field("skillshard/round/2", alias="schema")
    round: int = Field(ge=0)
    first_draw: int = Field(ge=0)
    weights: list[float] = Field(description="weights of the policy, in the run's unit; sum 1")
    num_draws: int = Field(
        ge=0, description="number of draws of this round; the stream ends with a round of fewer than round_draws"
    )
    counts: list[int] = Field(description="number of draws of each skill in this round")
    epochs: list[float] = Field(description="number of epochs of each skill after this round, fractions included")
    drawn_before: list[int] = Field(description="number of draws of each skill in all rounds before")
    carry: list[int] = Field(description="draws owed to each skill after this round, in units of 2**-40")
    observed_to: int = Field(ge=-1, description="draw up to which observations have been used; -1 for no observation")
    num_observed: int = Field(ge=0, description="number of observations used so far")
    observations: list[int] = Field(description="draws of the observations that this round uses for the first time")
    last_observation: str | None = Field(description="checksum of the last observation used; null for no observation")
    policy_state: dict[str, Any]
    previous: str = Field(description="checksum of the round before, or of run.json for round 0")

    @model_validator(mode="after")
    def _fits(self) -> "RoundRecord":
        num = len(self.weights)
        check_numbers("weights", self.weights, num, least=0)
        # The tolerance of `decision.py`, for weights that a policy computed in float32.
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"weights sum to {sum(self.weights):.9g}, not to 1")
        check_numbers("counts", self.counts, num, least=0)
        check_numbers("drawn_before", self.drawn_before, num, least=0)
        check_numbers("epochs", self.epochs, num, least=0)
        # No check of the range: a carry is negative for a skill that got too many draws.
        if len(self.carry) != num:
            raise ValueError(f"carry has {len(self.carry):,} numbers for {num:,} skills")
        if self.num_draws > sum(self.counts):
            raise ValueError(f"num_draws is {self.num_draws:,}, and the counts sum to {sum(self.counts):,}")
        return self


class SteeredRoundRecord(RoundRecord):
    """A round of a run that was steered before. A run without steering has no such round."""

    schema_version: Literal["skillshard/round/3"] = Field("skillshard/round/3", alias="schema")  # type: ignore[assignment]
    steer: int = Field(ge=0, description="number of the steering that acts in this round")
    steer_checksum: str = Field(description="checksum of the record of this steering")


class WaitRecord(LedgerRecord):
    """A loader that has waited long for the report of a round. The record determines nothing: it only tells what has happened."""

    schema_version: Literal["skillshard/wait/1"] = Field("skillshard/wait/1", alias="schema")
    run: str = Field(description="checksum of run.json")
    round: int = Field(ge=0, description="number of the round that waited")
    needed_draw: int = Field(ge=0, description="a report of this draw or a later draw ends the wait")
    last_draw: int | None = Field(ge=0, description="draw of the newest report; null if no losses were reported")
    waited_s: float = Field(gt=0, description="seconds waited before this record was written")


class PackedBeginRecord(LedgerRecord):
    """The record packed.json: the beginning of the packed stream of a run that continues another run."""

    schema_version: Literal["skillshard/packed-begin/1"] = Field("skillshard/packed-begin/1", alias="schema")
    run: str = Field(description="checksum of run.json")
    block: int = Field(ge=0, description="number of the first block of the run")
    left: int = Field(
        ge=0, description="number of tokens at the end of the last draw before the run that no earlier block has"
    )


class SteerRecord(LedgerRecord):
    """A steering: from a round on, the weights are given by hand, stay as they are, or come from the policy again."""

    schema_version: Literal["skillshard/steer/1"] = Field("skillshard/steer/1", alias="schema")
    first_round: int = Field(
        ge=0, description="first round in which the steering may act, undecided when it was recorded"
    )
    action: Literal["weights", "freeze", "resume"]
    weights: list[float] | None = Field(
        description="weights of the skills in the run's unit; null unless action is weights"
    )
    why: str = Field(min_length=1, description="reason in the words of the user")
    previous: str = Field(description="checksum of the steering before, or of run.json for steering 0")

    @model_validator(mode="after")
    def _fits(self) -> "SteerRecord":
        if (self.weights is not None) != (self.action == "weights"):
            raise ValueError(f"action {self.action} with the weights {self.weights}")
        if self.weights is not None:
            check_numbers("weights", self.weights, len(self.weights), least=0)
            if abs(sum(self.weights) - 1) > 1e-6:
                raise ValueError(f"weights sum to {sum(self.weights):.9g}, not to 1")
        return self


class Segment(BaseModel):
    """The generation that wrote the records from certain numbers on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: int = Field(ge=0)
    first_round: int = Field(ge=0)
    first_observation: int = Field(ge=0)


class GenerationRecord(LedgerRecord):
    """A resume: generation G continues from a draw and keeps the records of earlier generations up to the draw."""

    schema_version: Literal["skillshard/generation/1"] = Field("skillshard/generation/1", alias="schema")
    generation: int = Field(ge=1)
    job: str | None = Field(description="name of the job that began the generation; null for a single process")
    draw: int = Field(ge=0, description="draws consumed at the beginning of the generation")
    num_rounds: int = Field(ge=0, description="number of rounds kept from earlier generations")
    last_round: str = Field(description="checksum of the last round kept, or of run.json if no round is kept")
    num_observations: int = Field(ge=0, description="number of observations kept from earlier generations")
    last_observation: str = Field(
        description="checksum of the last observation kept, or of run.json if no observation is kept"
    )
    segments: list[Segment] = Field(
        description="writer of the records from certain numbers on; if several segments fit a number, the last segment counts"
    )
    previous: str = Field(description="checksum of the generation before, or of run.json for generation 1")

    @model_validator(mode="after")
    def _fits(self) -> "GenerationRecord":
        expected = Segment(
            generation=self.generation, first_round=self.num_rounds, first_observation=self.num_observations
        )
        if self.segments[-1:] != [expected]:
            raise ValueError(f"the last of segments is not {expected}")
        # Readers search the segments from the end, and rely on this order.
        writers = [segment.generation for segment in self.segments]
        if writers != sorted(set(writers)):
            raise ValueError(f"the generations of segments do not rise: {writers}")
        if min(segment.first_round for segment in self.segments) or min(
            segment.first_observation for segment in self.segments
        ):
            raise ValueError("no segment begins with round 0, or none with observation 0")
        return self
