"""The kinds of record of ``structured_output``, and the sentences that state each field.

Tables only. `Field.said` holds sentences per split with `{v}` for the value; a boolean field has
one pair of lists (true, false) instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.draw import Draw
from edgekit.quality.suites import words
from edgekit.quality.suites.base import Split

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
             "The name is {v}.", "It is booked by {v}.", "Book the table for {v}, please.",
             "{v} booked a table.", "We want to book for {v}.", "The guest is {v}."),
            ("Please book a table for {v}.", "The table is booked by {v}.")),
        "guests": Field("integer", _number(2, 19),
            ("There will be {v} guests.", "We are {v} people.", "A table for {v}.",
             "It is a group of {v}.", "Seats for {v} people.",
             "The table needs {v} seats.", "{v} guests will come.", "The group has {v} people.",
             "Please have seats for {v} of us."),
            ("We will be a group of {v} people.", "There are seats for {v} guests.")),
        "day": _choice(words.DAYS,
            ("Come on {v}.", "The day is {v}.", "It should be on {v}.", "On {v} if possible.",
             "We come on {v}.", "If possible, on {v}.",
             "The table is for {v}, if that day is free.", "We will be there on {v}.",
             "Please make it {v}."),
            ("The day should be {v}.", "If possible we come on {v}.")),
        "hour": Field("integer", _number(11, 22),
            ("We arrive at {v} o'clock.", "The time is {v} o'clock.", "Be ready at {v}.",
             "It starts at {v} o'clock.", "The table should be ready at {v}.",
             "We want to eat at {v} o'clock.", "Please, not before {v} o'clock."),
            ("The time should be {v}.", "We are ready at {v} o'clock.")),
        "outside": Field("boolean", None,
            ("We want to sit outside.", "A table outside, please.", "Outside is best.",
             "Please find us a place outside.", "The table should be outside.",
             "If possible we sit outside."),
            ("Please, we want a table outside.",),
            ("We want to sit inside.", "A table inside, please.", "Inside is best.",
             "Please find us a place inside.", "The table should be inside.",
             "If possible we sit inside."),
            ("Please, we want a table inside.",)),
        "food": Field("strings", words.food_list,
            ("They want {v}.", "Please have {v} ready.", "We would like {v}.",
             "For the table: {v}.", "We want to have {v} on the table.",
             "Have {v} for us, please.", "Please, {v} would be great.",
             "We would all like to eat {v}.",
             "Put {v} on the table."),
            ("Please, we would like to have {v}.", "Have {v} ready for the table.")),
        "phone": Field("string", lambda d, s: words.digits(d, s, 6),
            ("The phone number is {v}.", "Call {v}.", "You can call {v}.",
             "The number to call is {v}.",
             "If you have to call us: {v}.", "Please call the phone {v}."),
            ("You can call the number {v}.",), is_optional=True),
    },
    "parcel": {
        "sender": Field("string", words.company,
            ("{v} sent a parcel.", "The parcel comes from {v}.", "It was sent by {v}.",
             "The sender is {v}.", "{v} sends it.", "We got it from {v}.",
             "The parcel was packed by {v}."),
            ("A parcel was sent by {v}.", "It comes from {v}.")),
        "receiver": Field("string", words.person,
            ("It goes to {v}.", "It is for {v}.", "{v} will receive it.", "The receiver is {v}.",
             "Please give the parcel to {v}.", "It is a parcel for {v}.", "{v} gets it."),
            ("The parcel is for {v}.", "The parcel goes to {v}.")),
        "city": Field("string", words.place,
            ("It must reach {v}.", "It is sent to {v}.", "The city is {v}.",
             "Deliver it in {v}.", "The parcel must go to {v}.",
             "Bring the parcel to {v}.", "We deliver to {v}.", "It must be delivered in {v}."),
            ("It must be sent to {v}.", "Deliver the parcel in {v}.")),
        "weight_kg": Field("number", _price(1, 40),
            ("It weighs {v} kg.", "The weight is {v} kg.", "On the scale it shows {v} kg.",
             "There are {v} kg in it.", "The parcel has {v} kg.",
             "On the scale: {v} kg.", "The scale says {v} kg.", "We measured {v} kg."),
            ("The scale shows {v} kg.", "The parcel weighs {v} kg.")),
        "fragile": Field("boolean", None,
            ("It can break.", "Handle it with care.", "It is fragile.", "This is fragile.",
             "The parcel can break.", "Please be careful, it is fragile.",
             "What is in it is fragile."),
            ("The parcel is fragile.",),
            ("It can not break.", "No special care is needed.", "It is not fragile.",
             "This is not fragile.",
             "The parcel can not break.", "No need to be careful, it is not fragile.",
             "What is in it is not fragile."),
            ("The parcel is not fragile.",)),
        "speed": _choice(("normal", "express", "overnight"),
            ("Send it {v}.", "The service is {v}.", "It travels by {v} mail.",
             "We chose {v} service.", "The parcel travels by {v} service.",
             "For this one we use {v} mail.", "Please send the parcel {v}.", "It is {v} mail."),
            ("We send it by {v} mail.", "For the parcel we chose {v} service.")),
        "code": Field("string", lambda d, s: words.digits(d, s, 5),
            ("The code is {v}.", "Track it with {v}.", "The tracking code is {v}.",
             "The parcel has the code {v}.", "You can track the parcel, code {v}.",
             "Use the code {v}."),
            ("You can track it with the code {v}.",), is_optional=True),
    },
    "product": {
        "product": Field("string", words.gadget,
            ("We sell a {v}.", "This is a {v}.", "On offer: a {v}.", "Look at this {v}.",
             "The product is a {v}.", "We have a {v} here.",
             "Buy this {v}.", "Look, a {v}.", "You can have a {v} from us."),
            ("We offer a {v}.", "Look, this is a {v}.")),
        "brand": Field("string", words.company,
            ("It is made by {v}.", "The brand is {v}.", "{v} makes it.", "It is from {v}.",
             "The product is from {v}.", "This was made by {v}.", "The product has the brand {v}."),
            ("The product is made by {v}.", "This is from {v}.")),
        "price": Field("number", _price(3, 250),
            ("It costs {v} euros.", "The price is {v} euros.", "You pay {v} euros.",
             "Yours for {v} euros.", "The price of the product is {v} euros.",
             "This one costs {v} euros.", "For {v} euros you can have it.",
             "The price: {v} euros."),
            ("The product costs {v} euros.", "The price you pay is {v} euros.")),
        "stock": Field("integer", _number(2, 400),
            ("We have {v} of them.", "There are {v} left.", "{v} are in stock.",
             "The stock is {v}.", "We have {v} in stock.", "{v} of them are left.",
             "There are {v} of this product.", "The number in stock is {v}."),
            ("There are {v} of them in stock.", "We have {v} left.")),
        "used": Field("boolean", None,
            ("It was used before.", "It is second hand.", "It is used.",
             "This one was used before.",
             "The product is used.", "Someone used this product before.", "It is not new."),
            ("The product was used before.",),
            ("It is new.", "Nobody used it before.", "It is brand new.", "This one is brand new.",
             "The product is new.", "Nobody used this product before.", "It is not used."),
            ("The product is brand new.",)),
        "size": _choice(("small", "medium", "large"),
            ("The size is {v}.", "It comes in {v}.", "It is {v}.", "We only have {v}.",
             "The product is {v}.", "We have it in {v}.", "This one comes in {v}.",
             "Only {v} is left."),
            ("The product comes in {v}.", "We only have it in {v}.")),
        "color": Field("enum", lambda d, _: d.pick(words.COLORS),
            ("The color is {v}.", "It is painted {v}.", "It comes in the color {v}.",
             "The product is {v}, all of it.",
             "The product comes in {v} paint.", "We painted it {v}."),
            ("The product is painted {v}.",), choices=words.COLORS, is_optional=True),
    },
    "visit": {
        "patient": Field("string", words.person,
            ("{v} came to see the doctor.", "The patient is {v}.", "We saw {v}.",
             "{v} was here.", "The name of the patient is {v}.",
             "{v} came here.", "We had a visit from {v}.", "The doctor saw {v}."),
            ("The patient {v} was here.", "{v} came to see us.")),
        "age": Field("integer", _number(3, 96),
            ("The age is {v}.", "The patient is {v} years old.", "Age {v}.",
             "The patient turned {v}.", "The patient is at the age of {v}.",
             "Now {v} years old.", "The patient is {v} now.", "The age we have is {v}."),
            ("The patient is now {v}.", "The age of the patient is {v}.")),
        "town": Field("string", words.place,
            ("The home is in {v}.", "The patient lives in {v}.", "Home town: {v}.",
             "The patient comes from {v}.", "The town is {v}.",
             "The home of the patient is in {v}.", "The patient has to go home to {v}.",
             "The patient came from the town {v}."),
            ("The patient has a home in {v}.", "The home town is {v}.")),
        "temperature": Field("number", lambda d, _: d.between(36, 40) + d.pick((0.25, 0.5, 0.75)),
            ("The temperature is {v}.", "We measured {v} degrees.", "The fever was {v} degrees.",
             "It shows {v} degrees.", "The patient has {v} degrees.",
             "We measured {v}.", "A temperature of {v} degrees.", "The temperature was at {v}."),
            ("We measured a temperature of {v}.", "The temperature was {v} degrees.")),
        "urgent": Field("boolean", None,
            ("It is urgent.", "Act at once.", "This can not wait.", "The visit is urgent.",
             "It can not wait.", "This case is urgent.", "Please be quick, this is very urgent."),
            ("This is urgent.",),
            ("It is not urgent.", "There is no hurry.", "This can wait.",
             "The visit is not urgent.",
             "It can wait.", "This case is not urgent.",
             "No need to be quick, this is not very urgent."),
            ("This is not urgent.",)),
        "avoid": Field("strings", words.food_list,
            ("Do not eat {v}.", "Stay away from {v}.", "The patient must avoid {v}.",
             "No {v} for a week.", "Avoid {v}.",
             "The patient should not have {v}.", "Do not touch {v} for a week.",
             "For the patient, no {v}.", "The patient can eat all but {v}."),
            ("For a week, avoid {v}.", "The patient must not eat {v}.")),
        "next_day": Field("enum", lambda d, _: d.pick(words.DAYS),
            ("Come back on {v}.", "The next visit is on {v}.", "See us again on {v}.",
             "The patient has to come again on {v}.", "On {v} the patient must see us.",
             "Please come back here on {v}."),
            ("The patient must come back on {v}.",), choices=words.DAYS, is_optional=True),
    },
    "event": {
        "title": Field("string", words.meeting,
            ("The {v} is planned.", "There is a {v}.", "We plan a {v}.",
             "You are invited to the {v}.", "It is called {v}.", "Please come to the {v}.",
             "We invited all of you to a {v}.", "The event is a {v}.", "A {v} takes place."),
            ("A {v} is planned.", "We invited you to the {v}.")),
        "host": Field("string", words.person,
            ("{v} is the host.", "It is led by {v}.", "Ask {v} about it.", "{v} leads it.",
             "The host is {v}.", "The host is called {v}.",
             "The event is planned by {v}.", "It is {v} who leads the event.", "Please ask {v}."),
            ("Ask the host, {v}.", "The event is led by {v}.")),
        "city": Field("string", words.place,
            ("It takes place in {v}.", "We meet in {v}.", "Come to {v}.", "The event is in {v}.",
             "The event is planned in {v}.", "We all go to {v}.", "The place is {v}.",
             "All of us meet at {v}."),
            ("The event takes place in {v}.", "We all meet in {v}.")),
        "seats": Field("integer", _number(5, 300),
            ("There are {v} seats.", "{v} people can come.", "The room holds {v}.",
             "We have room for {v} people.", "The event has {v} seats.",
             "We have seats for {v}.", "The room has {v} seats.",
             "No more than {v} people, please."),
            ("We have {v} seats.", "The room holds {v} people.")),
        "free": Field("boolean", None,
            ("It is free.", "You pay nothing.", "It costs nothing.", "This event is free.",
             "The event costs nothing.", "The seats are free.", "All of it is free."),
            ("The event is free.",),
            ("It is not free.", "You have to pay.", "You need a ticket.", "This event is not free.",
             "The event costs a bit.", "The seats are not free.", "None of it is free."),
            ("The event is not free.",)),
        "bring": Field("strings", words.food_list,
            ("Please bring {v}.", "Bring {v} with you.", "We still need {v}.",
             "Do not forget {v}.", "Please do not forget to bring {v}.",
             "We need {v}.", "You need to bring {v}.", "Have {v} with you.",
             "We want you to bring us {v}."),
            ("We need you to bring {v}.", "Please do not forget {v}.")),
        "room": Field("enum", lambda d, _: d.pick(words.ROOMS),
            ("We use the {v}.", "It is in the {v}.", "Go to the {v}.", "The event is in the {v}.",
             "We all go to the {v}.", "We sit in the {v}."),
            ("We meet in the {v}.",), choices=words.ROOMS, is_optional=True),
    },
}  # fmt: skip
