"""Rewards that misbehave, reached by import path as a user's would be."""

import itertools
import os
import pathlib
import signal
import sys
import time


def length(prompt: str, answer: str, response: str) -> float:
  return float(len(response))


def by_response(prompt: str, answer: str, response: str) -> float:
  """Does what the response says; any other response is its own length."""
  if response in _MISDEEDS:
    return _MISDEEDS[response]()
  return float(len(response))


def terminated(prompt: str, answer: str, response: str) -> float:
  """Its length; the process is asked to stop where a file says so, once."""
  file = pathlib.Path(os.environ.get('GFT_JAX_TEST_TERMINATE', ''))
  if file.is_file():
    file.unlink()
    os.kill(os.getpid(), signal.SIGTERM)
  return float(len(response))


def slow(prompt: str, answer: str, response: str) -> float:
  """Its length, after a millisecond."""
  time.sleep(0.001)
  return float(len(response))


def killed(prompt: str, answer: str, response: str) -> float:
  """Its length; the process is killed once for each line of a file."""
  file = pathlib.Path(os.environ['GFT_JAX_TEST_KILLS'])
  kills = file.read_text().splitlines()
  if kills:
    file.write_text('\n'.join(kills[1:]))
    os.kill(os.getpid(), signal.SIGKILL)
  return float(len(response))


def uneven(prompt: str, answer: str, response: str) -> float:
  """0 or 1; the same for some prompts, and a bug for some responses."""
  if len(response) % 5 == 0:
    raise KeyError(response)
  return float(len(response) % 2 and prompt[0] > '3')


def hang(prompt: str, answer: str, response: str) -> float:
  return _hang()


def prompt_too(prompt: str, answer: str, response: str) -> float:
  return float(prompt == 'a')


def calls(prompt: str, answer: str, response: str) -> float:
  """How often this process was asked."""
  global _calls
  _calls += 1
  return float(_calls)


def process_id(prompt: str, answer: str, response: str) -> float:
  return float(os.getpid())


def jax_is_loaded(prompt: str, answer: str, response: str) -> float:
  return float(any(m.partition('.')[0] == 'jax' for m in sys.modules))


def _hang() -> float:
  while True:
    time.sleep(1)


def _eat() -> float:
  return float(len(bytearray(2**31)))


def _raise() -> float:
  raise KeyError('a bug in the reward')


_calls = 0
_MISDEEDS = {
  'hang': _hang,
  'hang in C': lambda: max(itertools.repeat(0)),
  'crash': lambda: os._exit(3),
  'eat': _eat,
  'eat all': lambda: float(len(bytearray(2**60))),
  'raise': _raise,
  'exit': sys.exit,
  'worker': os.getpid,
  'nan': lambda: float('nan'),
  'inf': lambda: float('inf'),
  'too large': lambda: 1e300,
  'none': lambda: None,
  'text': lambda: '1.0',
  'true': lambda: True,
}

not_a_function = 3
