"""What a model must know of the data it was trained on, so that it can be used without them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from configs.errors import InputError
from configs.read_files import parse_json, read_text
from data.vocabulary import MOST_TOKENIZER_BYTES, TOKENIZER, Vocabulary

MOST = 2**31
"""Numbers in one sample, or classes."""
DTYPES = r"(u?int(8|16|32|64)|b?float(16|32|64)|bool|)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFit:
    """How a decoded picture is brought to the size of the inputs.

    It is resized, its aspect kept, until a window of size / crop just fits, and the middle of that
    is cut out.
    """

    size: tuple[int, int]
    """Height and width."""
    crop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFacts:
    """Shape, type and scale of the inputs, what was done to pictures, and the classes.

    `mean` and `std` have one value per channel, or one for all, in units of the inputs divided by
    `scale` (255 for uint8 images).
    """

    input_shape: tuple[int, ...]
    num_classes: int
    """0: there are none, or their number is not known."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    classes: tuple[str, ...] = ()
    dtype: str = ""
    """Type of the inputs as they are stored, such as uint8; empty if it is not known."""
    fit: PictureFit | None = None
    """Of pictures of any size; None for inputs that are taken as they are stored."""
    features: tuple[str, ...] = ()
    """Names of the features of vectors, in their order; empty if they have none."""
    vocabulary: Vocabulary | None = None
    """Of tokens; None for other inputs."""
    structure: str = ""
    """What a sample's inputs are, in words, where they are not one tensor."""

    def __post_init__(self) -> None:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, *self.input_shape[:1]):
                raise InputError(
                    f"{key} of inputs {self.input_shape}",
                    given=f"{len(values)} numbers",
                    expected="one, or one for each channel or feature (the first dimension)",
                )
        if any(value <= 0 for value in self.std):
            raise InputError("std of the inputs", given=self.std, expected="numbers above 0")

    def require_one_input(self, what: str) -> None:
        """Refuse inputs of a structure where only one tensor makes sense.

        Raises:
            InputError: With the structure.
        """
        if self.structure:
            raise InputError(
                f"inputs to {what}",
                given=self.structure,
                expected="one tensor a sample",
                remedy="Use the weights: `convoy export RUN --format safetensors`, or "
                "checkpoints/best/model.safetensors in the run directory.",
            )

    def feature_name(self, index: int) -> str:
        """The name of a feature, or its place."""
        return repr(self.features[index]) if self.features else f"feature {index}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for every class: its number where the data set gives none."""
        given = self.classes[: self.num_classes]
        return (*given, *(str(number) for number in range(len(given), self.num_classes)))

    def check(self) -> None:
        """Refuse sizes and scales that no data have.

        Raises:
            ValueError: With the field.
        """
        shapes = (self.input_shape, self.fit.size if self.fit else ())
        sizes = [size for shape in shapes for size in shape]
        numbers = (self.scale, *self.mean, *self.std)
        holds = {
            "input_shape": min(sizes, default=1) > 0 and max(map(math.prod, shapes)) <= MOST,
            "num_classes": 0 <= self.num_classes <= MOST,
            "mean, std and scale": all(map(math.isfinite, numbers)) and self.scale > 0,
            "dtype": re.fullmatch(DTYPES, self.dtype) is not None,
            "fit.crop": self.fit is None or 0 < self.fit.crop <= 1,
        }
        for field, is_so in holds.items():
            if not is_so:
                raise ValueError(field)

    def to_json(self) -> dict[str, Any]:
        """The fields, in types that JSON has: a user's data set may hold numpy's."""
        return {
            "input_shape": [int(size) for size in self.input_shape],
            "num_classes": int(self.num_classes),
            "mean": [float(value) for value in self.mean],
            "std": [float(value) for value in self.std],
            "scale": float(self.scale),
            "classes": [str(name) for name in self.classes],
            "dtype": self.dtype,
            "fit": None if self.fit is None else asdict(self.fit),
            "features": [str(name) for name in self.features],
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_json(),
            "structure": self.structure,
        }

    @classmethod
    def from_json(cls, content: Any, where: str, tokenizer: str = "") -> Self:
        """What `to_json` wrote; JSON keeps every bit of a float.

        Args:
            content: The parsed JSON.
            where: The file, for the message.
            tokenizer: The content of a tokenizer's file that lies beside it.

        Raises:
            InputError: If it is something else.
        """
        try:
            new = {"fit": None, "features": (), "structure": "", "vocabulary": None}
            known = new | content
            fit, words = known["fit"], known["vocabulary"]
            if fit is not None:
                height, width = (int(side) for side in fit["size"])
                fit = PictureFit(size=(height, width), crop=float(fit["crop"]))
            facts = cls(
                input_shape=tuple(int(size) for size in known["input_shape"]),
                num_classes=int(known["num_classes"]),
                mean=tuple(float(value) for value in known["mean"]),
                std=tuple(float(value) for value in known["std"]),
                scale=float(known["scale"]),
                classes=tuple(str(name) for name in known["classes"]),
                dtype=str(known["dtype"]),
                fit=fit,
                features=tuple(str(name) for name in known["features"]),
                vocabulary=None if words is None else Vocabulary.from_json(words, tokenizer),
                structure=str(known["structure"]),
            )
            facts.check()
            return facts
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InputError(
                f"{where} is not as it was written ({type(error).__name__}: {error})",
                expected="the facts of a run's data",
                remedy="Delete it: they are then found from the data themselves.",
            ) from None


def read_model(path: Path) -> tuple[InputFacts, Any]:
    """The facts in a model.json, and all of its content.

    Raises:
        InputError: If it is damaged.
        FileNotFoundError: If it is missing.
    """
    try:
        content: Any = parse_json(read_text(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        content = f"unreadable: {error}"
    return InputFacts.from_json(content, str(path), _tokenizer(path.with_name(TOKENIZER))), content


def _tokenizer(path: Path) -> str:
    try:
        return read_text(path, most=MOST_TOKENIZER_BYTES)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise InputError(f"{path} ({error})", expected="the tokenizer of the run") from None
