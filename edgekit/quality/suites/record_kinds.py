"""Which kinds of record can a text describe, and how is each field put into words?

Tables only. `Field.said` holds sentences per split with `{v}` for the value; a boolean field has
one pair of lists (true, false) instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.quality.suites import words
from edgekit.quality.suites.base import Draw, Split

__all__ = ["RECORD_KINDS", "Field", "Value"]

Value = str | int | float | bool | list[str] | None
Maker = Callable[[Draw, Split], Value]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record.

    Attributes:
        kind: JSON Schema type, `enum` for a closed choice, `strings` for an array of strings.
        make: Draws a value; None for booleans, which are drawn with their wording.
        train: Training sentences; for a boolean those that mean true.
        held_out: Reserved sentences, likewise.
        train_false: For a boolean, training sentences that mean false.
        held_out_false: For a boolean, reserved sentences that mean false.
        choices: Values of an enum.
        is_optional: Whether a text may leave it out.
    """

    kind: str
    make: Maker | None
    train: Sequence[str]
    held_out: Sequence[str]
    train_false: Sequence[str] = ()
    held_out_false: Sequence[str] = ()
    choices: Sequence[str] = ()
    is_optional: bool = False


def _number(low: int, high: int) -> Maker:
    return lambda draw, _: draw.between(low, high)


def _price(low: int, high: int) -> Maker:
    return lambda draw, _: draw.between(low, high) + draw.pick((0.5, 0.25, 0.75))


def _choice(choices: Sequence[str], make: Sequence[str], held_out: Sequence[str]) -> Field:
    return Field("enum", lambda draw, _: draw.pick(choices), make, held_out, choices=choices)


RECORD_KINDS: Mapping[str, Mapping[str, Field]] = {
    "booking": {
        "name": Field("string", words.person,
            ("The table is for {v}.", "{v} wants a table.", "Please book it for {v}.",
             "The name is {v}.", "It is booked by {v}."),
            ("Please book a table for {v}.", "The table is booked by {v}.")),
        "guests": Field("integer", _number(2, 19),
            ("There will be {v} guests.", "We are {v} people.", "A table for {v}.",
             "It is a group of {v}.", "Seats for {v} people."),
            ("We will be a group of {v} people.", "There are seats for {v} guests.")),
        "day": _choice(words.DAYS,
            ("Come on {v}.", "The day is {v}.", "It should be on {v}.", "On {v} if possible.",
             "We come on {v}."),
            ("The day should be {v}.", "If possible we come on {v}.")),
        "hour": Field("integer", _number(11, 22),
            ("We arrive at {v} o'clock.", "The time is {v} o'clock.", "Be ready at {v}.",
             "It starts at {v} o'clock."),
            ("The time should be {v}.", "We are ready at {v} o'clock.")),
        "outside": Field("boolean", None,
            ("We want to sit outside.", "A table outside, please.", "Outside is best."),
            ("Please, we want a table outside.",),
            ("We want to sit inside.", "A table inside, please.", "Inside is best."),
            ("Please, we want a table inside.",)),
        "food": Field("strings", words.food_list,
            ("They want {v}.", "Please have {v} ready.", "We would like {v}.",
             "For the table: {v}."),
            ("Please, we would like to have {v}.", "Have {v} ready for the table.")),
        "phone": Field("string", lambda d, s: words.digits(d, s, 6),
            ("The phone number is {v}.", "Call {v}.", "You can call {v}."),
            ("You can call the number {v}.",), is_optional=True),
    },
    "parcel": {
        "sender": Field("string", words.company,
            ("{v} sent a parcel.", "The parcel comes from {v}.", "It was sent by {v}.",
             "The sender is {v}."),
            ("A parcel was sent by {v}.", "It comes from {v}.")),
        "receiver": Field("string", words.person,
            ("It goes to {v}.", "It is for {v}.", "{v} will receive it.", "The receiver is {v}."),
            ("The parcel is for {v}.", "The parcel goes to {v}.")),
        "city": Field("string", words.place,
            ("It must reach {v}.", "It is sent to {v}.", "The city is {v}.",
             "Deliver it in {v}."),
            ("It must be sent to {v}.", "Deliver the parcel in {v}.")),
        "weight_kg": Field("number", _price(1, 40),
            ("It weighs {v} kg.", "The weight is {v} kg.", "On the scale it shows {v} kg.",
             "There are {v} kg in it."),
            ("The scale shows {v} kg.", "The parcel weighs {v} kg.")),
        "fragile": Field("boolean", None,
            ("It can break.", "Handle it with care.", "It is fragile."),
            ("The parcel is fragile.",),
            ("It can not break.", "No special care is needed.", "It is not fragile."),
            ("The parcel is not fragile.",)),
        "speed": _choice(("normal", "express", "overnight"),
            ("Send it {v}.", "The service is {v}.", "It travels by {v} mail.",
             "We chose {v} service."),
            ("We send it by {v} mail.", "For the parcel we chose {v} service.")),
        "code": Field("string", lambda d, s: words.digits(d, s, 5),
            ("The code is {v}.", "Track it with {v}.", "The tracking code is {v}."),
            ("You can track it with the code {v}.",), is_optional=True),
    },
    "product": {
        "product": Field("string", words.gadget,
            ("We sell a {v}.", "This is a {v}.", "On offer: a {v}.", "Look at this {v}.",
             "The product is a {v}."),
            ("We offer a {v}.", "Look, this is a {v}.")),
        "brand": Field("string", words.company,
            ("It is made by {v}.", "The brand is {v}.", "{v} makes it.", "It is from {v}."),
            ("The product is made by {v}.", "This is from {v}.")),
        "price": Field("number", _price(3, 250),
            ("It costs {v} euros.", "The price is {v} euros.", "You pay {v} euros.",
             "Yours for {v} euros."),
            ("The product costs {v} euros.", "The price you pay is {v} euros.")),
        "stock": Field("integer", _number(2, 400),
            ("We have {v} of them.", "There are {v} left.", "{v} are in stock.",
             "The stock is {v}."),
            ("There are {v} of them in stock.", "We have {v} left.")),
        "used": Field("boolean", None,
            ("It was used before.", "It is second hand.", "It is used."),
            ("The product was used before.",),
            ("It is new.", "Nobody used it before.", "It is brand new."),
            ("The product is brand new.",)),
        "size": _choice(("small", "medium", "large"),
            ("The size is {v}.", "It comes in {v}.", "It is {v}.", "We only have {v}."),
            ("The product comes in {v}.", "We only have it in {v}.")),
        "color": Field("enum", lambda d, _: d.pick(words.COLORS),
            ("The color is {v}.", "It is painted {v}.", "It comes in the color {v}."),
            ("The product is painted {v}.",), choices=words.COLORS, is_optional=True),
    },
    "visit": {
        "patient": Field("string", words.person,
            ("{v} came to see the doctor.", "The patient is {v}.", "We saw {v}.",
             "{v} was here."),
            ("The patient {v} was here.", "{v} came to see us.")),
        "age": Field("integer", _number(3, 96),
            ("The age is {v}.", "The patient is {v} years old.", "Age {v}.",
             "The patient turned {v}."),
            ("The patient is now {v}.", "The age of the patient is {v}.")),
        "town": Field("string", words.place,
            ("The home is in {v}.", "The patient lives in {v}.", "Home town: {v}.",
             "The patient comes from {v}."),
            ("The patient has a home in {v}.", "The home town is {v}.")),
        "temperature": Field("number", lambda d, _: d.between(36, 40) + d.pick((0.25, 0.5, 0.75)),
            ("The temperature is {v}.", "We measured {v} degrees.", "The fever was {v} degrees.",
             "It shows {v} degrees."),
            ("We measured a temperature of {v}.", "The temperature was {v} degrees.")),
        "urgent": Field("boolean", None,
            ("It is urgent.", "Act at once.", "This can not wait."),
            ("This is urgent.",),
            ("It is not urgent.", "There is no hurry.", "This can wait."),
            ("This is not urgent.",)),
        "avoid": Field("strings", words.food_list,
            ("Do not eat {v}.", "Stay away from {v}.", "The patient must avoid {v}.",
             "No {v} for a week."),
            ("For a week, avoid {v}.", "The patient must not eat {v}.")),
        "next_day": Field("enum", lambda d, _: d.pick(words.DAYS),
            ("Come back on {v}.", "The next visit is on {v}.", "See us again on {v}."),
            ("The patient must come back on {v}.",), choices=words.DAYS, is_optional=True),
    },
    "event": {
        "title": Field("string", words.meeting,
            ("The {v} is planned.", "There is a {v}.", "We plan a {v}.",
             "You are invited to the {v}.", "It is called {v}."),
            ("A {v} is planned.", "We invited you to the {v}.")),
        "host": Field("string", words.person,
            ("{v} is the host.", "It is led by {v}.", "Ask {v} about it.", "{v} leads it.",
             "The host is {v}."),
            ("Ask the host, {v}.", "The event is led by {v}.")),
        "city": Field("string", words.place,
            ("It takes place in {v}.", "We meet in {v}.", "Come to {v}.", "The event is in {v}."),
            ("The event takes place in {v}.", "We all meet in {v}.")),
        "seats": Field("integer", _number(5, 300),
            ("There are {v} seats.", "{v} people can come.", "The room holds {v}.",
             "We have room for {v} people."),
            ("We have {v} seats.", "The room holds {v} people.")),
        "free": Field("boolean", None,
            ("It is free.", "You pay nothing.", "It costs nothing."),
            ("The event is free.",),
            ("It is not free.", "You have to pay.", "You need a ticket."),
            ("The event is not free.",)),
        "bring": Field("strings", words.food_list,
            ("Please bring {v}.", "Bring {v} with you.", "We still need {v}.",
             "Do not forget {v}."),
            ("We need you to bring {v}.", "Please do not forget {v}.")),
        "room": Field("enum", lambda d, _: d.pick(words.ROOMS),
            ("We use the {v}.", "It is in the {v}.", "Go to the {v}."),
            ("We meet in the {v}.",), choices=words.ROOMS, is_optional=True),
    },
}  # fmt: skip
