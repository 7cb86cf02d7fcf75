"""What one cell of a file holds: text, a number, or nothing that can be used."""

import decimal
import math

# The longest text of a row, in characters: far beyond any context, and seconds
# of a tokenizer's time.
LONGEST = 4_000_000


class BadRow(ValueError):
  """Why one row of a file cannot be used."""


def text_of(role: str, value: object) -> str:
  """The text of a cell; raises BadRow where there is none."""
  value = decoded(value)
  if value is None:
    raise BadRow(f'{role} is missing')
  if isinstance(value, float) and not math.isfinite(value):
    raise BadRow(f'{role} is {value}, not text')
  if not isinstance(value, str):
    raise BadRow(f'{role} is a {type(value).__name__}, not text')
  if not value.strip():
    raise BadRow(f'{role} is empty')
  if len(value) > LONGEST:
    raise BadRow(f'{role} is longer than {LONGEST:,} characters')
  try:
    value.encode()
  except UnicodeEncodeError:
    raise BadRow(f'{role} is not UTF-8') from None
  return value


def answer_of(value: object) -> str:
  """The text of a reference answer: a text, a number or a list of one of them.

  Raises:
    BadRow: anything else, and a list of several: a grader compares with one.
  """
  if isinstance(value, list):
    if len(value) != 1:
      raise BadRow(f'answer is a list of {len(value)}, not one answer')
    (value,) = value
  return text_of('answer', number_as_text(value))


def decoded(value: object) -> object:
  """Text of bytes; what is not UTF-8 stays recognisable as such."""
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode()
  except UnicodeDecodeError:
    # The encoding that `text_of` refuses; `files.rows` must not stop here.
    return value.decode(errors='surrogateescape')


def number_as_text(value: object) -> object:
  """Text of a finite number; anything else as it is."""
  if isinstance(value, decimal.Decimal):
    whole = value == value.to_integral_value()
    return number_as_text(int(value) if whole else float(value))
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return value
  return str(value) if abs(value) < math.inf else value  # NaN is not


def as_json(value: object) -> object:
  """The value in JSON types: bytes as text, what JSON lacks as its text.

  Keys without a value are left out: Arrow gives each object of a column the
  keys of all others.
  """
  value = decoded(value)
  if isinstance(value, dict):
    return {k: as_json(v) for k, v in value.items() if v is not None}
  if isinstance(value, list | tuple):
    return [as_json(item) for item in value]
  if value is None or isinstance(value, str | bool | int | float):
    return value
  return str(value)
