"""Settings as text and as JSON: `loss.tau=0.2` in, dotted names out."""

import ast
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeGuard, TypeVar

from gft_jax.config.checks import ConfigError, nearest, require
from gft_jax.config.elsewhere import OURS
from gft_jax.config.settings import Config, Stage

if TYPE_CHECKING:
  from _typeshed import DataclassInstance

Settings = TypeVar('Settings', bound='DataclassInstance')


def override(config: Settings, assignment: str) -> Settings:
  """Returns `config` with one setting replaced, in every stage.

  What a stage overrides gives way: the last who speaks of a setting counts.

  Args:
    config: a dataclass of this module.
    assignment: 'a.b=c', or for one stage 'stages.NAME.a.b=c', as in
      'stages.gft.steps=10' and 'stages.gft.loss.tau=0.3'.

  Raises:
    ConfigError: unknown field (names the nearest), wrong type, failed check.
  """
  path, text = _parts(assignment)
  config = _replace(config, path.split('.'), text, path)
  if not isinstance(config, Config):
    return config
  stages = tuple(_without(stage, path) for stage in config.stages)
  config = dataclasses.replace(config, stages=stages)
  for stage in stages:
    if path.startswith(f'stages.{stage.name}.'):
      for_stage(config, stage)  # An override that does not fit is refused.
  return config


def overridden(config: Config, assignments: Iterable[str]) -> Config:
  """The config under assignments `a.b=c`; the last of a setting counts.

  One that only fits with others, as eval.ks=1,8 eval.samples=8, may stand
  before them.

  Raises:
    ConfigError: an assignment that does not fit; see `override`.
  """
  waiting = list(enumerate(assignments))
  paths = [_parts(assignment)[0] for _, assignment in waiting]
  again = False
  while waiting:
    faults: list[tuple[tuple[int, str], ConfigError]] = []
    for i, assignment in waiting:
      try:
        changed = override(config, assignment)
      except ConfigError as error:
        faults.append(((i, assignment), error))
      else:
        # Tried again, it does not pass a later one of the same setting.
        if not again or paths[i] not in paths[i + 1 :]:
          config = changed
    if len(faults) == len(waiting):
      raise faults[0][1]
    waiting, again = [one for one, _ in faults], True
  return config


def for_stage(config: Config, stage: Stage) -> Config:
  """The settings of one stage: the top level under its overrides.

  Raises:
    ConfigError: an override that does not fit; names the stage.
  """
  for assignment in stage.overrides:
    path, text = _parts(assignment)
    try:
      config = _replace(config, path.split('.'), text, path)
    except ConfigError as error:
      raise ConfigError(f'stages.{stage.name}.overrides: {error}') from None
  return config


def to_dict(config: 'DataclassInstance') -> dict[str, object]:
  """Plain JSON types; `from_dict` is its inverse."""
  return dataclasses.asdict(config)


def from_dict(kind: type[Settings], values: object) -> Settings:
  """The dataclass `kind` from the dictionary that `to_dict` gave."""
  if not isinstance(values, Mapping):
    raise ConfigError(f'{kind.__name__} is not made of {values!r}')
  hints = typing.get_type_hints(kind)
  unknown = sorted(set(values) - set(hints))
  require(not unknown, f'{kind.__name__} has no field {", ".join(unknown)}')
  return kind(**{k: _from_json(hints[k], v) for k, v in values.items()})


def differences(old: object, new: object, path: str = '') -> list[str]:
  """Names of the fields in which two configs differ, as 'a.b: old -> new'."""
  if dataclasses.is_dataclass(old) and type(old) is type(new):
    return [
      line
      for field in dataclasses.fields(old)
      for line in differences(
        getattr(old, field.name),
        getattr(new, field.name),
        f'{path}.{field.name}' if path else field.name,
      )
    ]
  if _is_stages(old) and _is_stages(new):
    names = [stage.name for stage in old]
    if names == [stage.name for stage in new]:
      return [
        line
        for a, b in zip(old, new)
        for line in differences(a, b, f'{path}.{a.name}')
      ]
  return [] if old == new else [f'{path}: {old!r} -> {new!r}']


def fields_with_meaning(kind: type = Config, path: str = ''):
  """Yields (dotted name, type name, default, meaning) of every field."""
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    name = f'{path}{field.name}'
    if dataclasses.is_dataclass(hints[field.name]):
      yield from fields_with_meaning(hints[field.name], f'{name}.')
    elif hints[field.name] == tuple[Stage, ...]:
      yield from fields_with_meaning(Stage, f'{name}.NAME.')
    else:
      kind_name = _type_name(hints[field.name])
      yield name, kind_name, field.default, field.metadata['meaning']


def _parts(assignment: str) -> tuple[str, str]:
  """'a.b = c' -> ('a.b', 'c')."""
  path, separator, text = assignment.partition('=')
  require(
    bool(separator) and bool(path.strip()),
    f'--set {assignment!r} is not of the form a.b=c',
  )
  return path.strip(), text.strip()


def _without(stage: Stage, setting: str) -> Stage:
  """The stage without its overrides of a setting."""
  kept = tuple(x for x in stage.overrides if _parts(x)[0] != setting)
  return dataclasses.replace(stage, overrides=kept)


def _with(stage: Stage, setting: str, text: str) -> Stage:
  """The stage with this override of a setting, and no other of it."""
  others = _without(stage, setting).overrides
  return dataclasses.replace(stage, overrides=(*others, f'{setting}={text}'))


def _meant(name: str, head: str, choices: Iterable[str]) -> str:
  """What was meant by a setting that is not there, if that can be guessed."""
  choices, last = tuple(choices), name.rpartition('.')[2]
  if last in OURS:
    return f'; here it is {OURS[last]}'
  if difflib.get_close_matches(head, choices, cutoff=0.7):
    return nearest(head, choices)
  found = [x for x, *_ in fields_with_meaning() if x.endswith(f'.{last}')]
  if found:
    return f'; did you mean {" or ".join(found)}?'
  likely = difflib.get_close_matches(head, choices, cutoff=0.55)
  return nearest(head, likely)


def _is_stages(value: object) -> TypeGuard[tuple[Stage, ...]]:
  return (
    bool(value) and isinstance(value, tuple) and isinstance(value[0], Stage)
  )


def _replace_stage(
  stages: tuple[Stage, ...], path: list[str], text: str, name: str
) -> tuple[Stage, ...]:
  head, rest = path[0], path[1:]
  names = [stage.name for stage in stages]
  require(
    head in names,
    f'{name}: no stage {head!r}; stages: {", ".join(names)}'
    + nearest(head, names),
  )
  require(bool(rest), f'{name} is a group of settings, not one setting')
  if rest[0] in typing.get_type_hints(Stage):
    replace = functools.partial(_replace, path=rest, text=text, name=name)
  else:  # A setting of the run, for this stage alone.
    replace = functools.partial(_with, setting='.'.join(rest), text=text)
  return tuple(
    replace(stage) if stage.name == head else stage for stage in stages
  )


def _replace(node: Settings, path: list[str], text: str, name: str) -> Settings:
  head, rest = path[0], path[1:]
  hints = typing.get_type_hints(type(node))
  require(
    head in hints,
    f'{name}: no setting {head!r}' + _meant(name, head, hints),
  )
  current = getattr(node, head)
  grouped = dataclasses.is_dataclass(current) or _is_stages(current)
  require(
    bool(rest) or not grouped,
    f'{name} is a group of settings, not one setting',
  )
  if _is_stages(current):
    value = _replace_stage(current, rest, text, name)
  elif grouped:
    value = _replace(current, rest, text, name)
  else:
    require(not rest, f'{name}: {head!r} is one setting, not a group')
    value = _parse(hints[head], text, name)
  return dataclasses.replace(node, **{head: value})


def _parse(kind: type, text: str, name: str) -> object:
  origin = typing.get_origin(kind)
  if origin is types.UnionType:
    inner = [k for k in typing.get_args(kind) if k is not types.NoneType]
    return None if text.lower() == 'none' else _parse(inner[0], text, name)
  if origin is tuple:
    kinds, inside = typing.get_args(kind), text.strip('()[] ')
    if kinds[0] is str and inside[:1] in ('"', "'"):
      items = _literals(inside, name)
    else:
      items = [t.strip() for t in inside.split(',') if t.strip()]
    if kinds[-1] is Ellipsis:
      kinds = (kinds[0],) * len(items)
    require(
      len(items) == len(kinds),
      f'{name}={text!r} has {len(items)} items, not {len(kinds)}',
    )
    return tuple(_parse(k, item, name) for k, item in zip(kinds, items))
  if kind is bool:
    choices = {'true': True, '1': True, 'false': False, '0': False}
    require(text.lower() in choices, f'{name}={text!r} is not true or false')
    return choices[text.lower()]
  try:
    return kind(text)
  except ValueError:
    raise ConfigError(
      f'{name}={text!r} is not of type {kind.__name__}'
    ) from None


def _literals(text: str, name: str) -> list[str]:
  r"""Quoted strings as Python writes them: '\n\n', 'a, b'."""
  try:
    items = list(ast.literal_eval(f'({text},)'))
  except (SyntaxError, ValueError):
    items = []
  require(
    bool(items) and all(isinstance(item, str) for item in items),
    f"{name}={text} is not a list of quoted strings, such as '\\n\\n','Q:'",
  )
  return items


def _from_json(kind: type, value: object) -> object:
  if dataclasses.is_dataclass(kind):
    return from_dict(kind, value)
  if isinstance(value, (list, tuple)):
    if kind == tuple[Stage, ...]:
      return tuple(from_dict(Stage, item) for item in value)
    return tuple(value)
  return value


def _type_name(kind: type) -> str:
  return (
    kind.__name__
    if isinstance(kind, type) and not typing.get_args(kind)
    else str(kind)
  )
