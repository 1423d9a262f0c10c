"""What a look at a machine says: a name, how bad it is, what that means, what to do. Pure."""

import enum
from dataclasses import dataclass


class Grade(enum.Enum):
    """OK: as it should be. LESS: it works, slower or without something. FAULT: it does not work."""

    OK = "ok"
    LESS = "less"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One probe's answer. ``advice`` is empty where there is nothing to do."""

    name: str
    grade: Grade
    said: str
    advice: str = ""
