"""What is kept of a group, and what of it reaches the page."""

import html.parser
import json

import numpy as np
import pytest

from gft_jax.batch import EXPERT, SELF, TEACHER, Prompts, Responses
from gft_jax.report import groups as report_groups
from gft_jax.rollout import groups


def member(**changes):
  fields = {
    'origin': 'expert',
    'reward': 1.0,
    'advantage': 0.87,
    'length': 3,
    'tokens': ['un', 'likely', '.'],
    'p': [0.05, 0.69, 0.8],
    'kept': [],
  }
  return report_groups.Member(**fields | changes)


def shown(*members, prompt='2+2:', answer='4', size=None):
  size = len(members) if size is None else size
  group = report_groups.Group(prompt, answer, size, list(members))
  return report_groups.GroupSamples('gft', 45, 0.7, [group])


class Spans(html.parser.HTMLParser):
  """(class, title, text) of each token, text of the rest, and all tags."""

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.spans, self.rest = [], set(), [], ''
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.open.append(tag)
    self.tags.add(tag)
    if tag == 'span':
      values = dict(attrs)
      assert set(values) == {'class', 'title'}
      self.spans.append([values['class'], values['title'], ''])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'span' in self.open:
      self.spans[-1][2] += data
    else:
      self.rest += data


def page(*args, **settings):
  return Spans(report_groups.section(shown(*args, **settings), 'gft'))


def test_numbers_of_each_token():
  """C = p up to τ and 1 above; the weight on ∇p is A C/p."""
  weights = report_groups.weights_of(member(), 0.7)
  np.testing.assert_allclose(weights.p, [0.05, 0.69, 0.8])
  np.testing.assert_allclose(weights.coefficient, [0.05, 0.69, 1], rtol=1e-6)
  np.testing.assert_allclose(weights.before, [17.4, 1.26087, 1.0875], rtol=1e-5)
  np.testing.assert_allclose(weights.after, [0.87, 0.87, 1.0875], rtol=1e-6)


def test_numbers_reach_the_page():
  found = page(member())
  assert 'reward 1.00, A\xa0=\xa0+0.87' in found.rest
  assert '2 of 3 rectified; largest weight 17.4\xa0→\xa01.09' in found.rest
  assert 'GFT, step 45, τ = 0.7' in found.rest
  title = (
    'p = 0.05, C = 0.05, A = +0.87: 1/p = 20, C/p = 1, A/p = 17.4, A·C/p = 0.87'
  )
  before, after = found.spans[:3], found.spans[3:]
  # 17.4 is in the fifth half of a decade above 0.1, 0.87 in the second.
  assert before[0] == ['up5', title, 'un']
  assert after[0] == ['up2 rectified', title, 'un']
  assert [s[0] for s in before] == ['up5', 'up3', 'up3']
  assert [s[0] for s in after] == ['up2 rectified', 'up2 rectified', 'up3']


def test_a_worse_answer_is_pushed_down_and_an_equal_one_not_at_all():
  spans = page(member(advantage=-1.21, reward=0.0)).spans
  assert [s[0] for s in spans[:3]] == ['down5', 'down3', 'down3']
  assert 'A = −1.21' in spans[0][1] and 'A/p = −24.2' in spans[0][1]
  flat = page(member(advantage=0.0))
  assert {s[0].split()[0] for s in flat.spans} == {'down0'}
  assert '.down0' not in report_groups.CSS


def test_an_answer_without_reward_counts_once():
  found = page(member(reward=None, advantage=None))
  assert 'no reward, A\xa0=\xa01' in found.rest
  assert 'largest weight 20\xa0→\xa01.25' in found.rest


def test_an_end_that_is_kept_is_not_rectified():
  (before, after) = page(
    member(tokens=['$'], p=[0.002], length=1, kept=[0])
  ).spans
  assert before[0] == after[0] == 'up8' and 'C = 1,' in after[1]


def test_a_probability_of_zero_has_a_finite_weight():
  found = page(member(tokens=['x'], p=[0.0], length=1))
  assert 'largest weight 8.7e+36\xa0→\xa00.87' in found.rest
  assert [s[0] for s in found.spans] == ['up8', 'up2 rectified']


def test_tokens_that_train_nobody_have_no_weight():
  found = page(member(p=[None, 0.5, None]))
  assert '1 of 1 rectified' in found.rest
  assert found.spans[0] == ['untrained', 'not trained', 'un']
  nothing = page(member(p=[None] * 3))
  assert '0 of 0 rectified' in nothing.rest and 'largest' not in nothing.rest


def test_what_is_left_out_is_said():
  found = page(member(length=900), size=64)
  assert '3 of 900 tokens shown' in found.rest
  assert 'and 63 more answers' in found.rest
  found = page(member())
  assert 'shown' not in found.rest and 'more answers' not in found.rest


def test_texts_of_a_model_are_escaped():
  attack = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;\n'
  found = page(
    member(tokens=[attack, '', '</span>'], origin=attack),
    prompt=attack,
    answer=attack,
  )
  assert found.tags <= {'details', 'summary', 'b', 'small', 'div', 'p', 'span'}
  assert [s[2] for s in found.spans[:3]] == [
    attack.replace('\n', '↵\n'),
    '',
    '</span>',
  ]
  assert found.rest.count(attack) == 3
  titled = report_groups.section(shown(member()), attack)
  assert '<script' not in titled and attack in Spans(titled).rest


def test_every_colour_of_a_token_is_in_the_style():
  for sign, name in ((1, 'up'), (-1, 'down')):
    found = {
      report_groups._class(sign * 10.0**power, 1)
      for power in np.arange(-9, 9, 0.1)
    }
    assert found == {f'{name}{n}' for n in range(1, 9)}
    assert all(f'.{c} {{ background: #' in report_groups.CSS for c in found)
  assert '.up8 { background: #338ec1 }' in report_groups.CSS  # 0.8 of #0072B2
  for weight, level in zip(report_groups.SCALE, (1, 2, 4, 6, 8)):
    assert report_groups._class(weight, 1) == f'up{level}'


def batch():
  """Two prompts, of three slots each; one is empty."""
  length = np.array([[2, 0, 3], [1, 1, 1]], np.int32)
  tokens = np.arange(18, dtype=np.int32).reshape(2, 3, 3)
  return groups.build(
    Prompts(np.ones((2, 2), np.int32), np.ones(2, np.int32), np.arange(2)),
    Responses(tokens, length, np.zeros(tokens.shape, np.float32)),
    np.array([[EXPERT, TEACHER, SELF]] * 2),
    np.arange(6, dtype=np.float32).reshape(2, 3),
  )


def kept_of(batch, *, advantages=None, kept=None):
  return report_groups.groups_of(
    batch,
    ['a', 'b'],
    ['1', '2'],
    np.log(np.linspace(0.05, 0.9, 18).reshape(2, 3, 3)).astype(np.float32),
    advantages,
    kept,
    lambda ids: [f'<{i}>' for i in ids],
  )


def test_groups_are_kept_as_they_are_and_read_back(tmp_path):
  advantages = np.array([[0.5, 0, -0.5], [1, 2, 3]], np.float32)
  ends = np.zeros((2, 3, 3), bool)
  ends[0, 2, 2] = True
  found = kept_of(batch(), advantages=advantages, kept=ends)
  first, second = found
  assert (first.prompt, first.answer, first.size) == ('a', '1', 2)
  assert [m.origin for m in first.members] == ['expert', 'self']
  own = first.members[1]
  assert (own.reward, own.advantage, own.length) == (2.0, -0.5, 3)
  assert own.tokens == ['<6>', '<7>', '<8>'] and own.kept == [2]
  assert own.p == [0.35, 0.4, 0.45]
  assert [m.reward for m in second.members] == [3, 4, 5]
  path = tmp_path / 'gft.json'
  whole = report_groups.GroupSamples('gft', 3, 0.7, found)
  path.write_text(report_groups.text_of(whole))
  assert report_groups.read(path) == whole
  assert json.loads(path.read_text())['groups'][0]['members'][1]['p'][0] == 0.35


def test_an_objective_without_rewards_keeps_none():
  (first, _) = kept_of(batch())
  assert first.members[0].reward is first.members[0].advantage is None
  assert first.members[0].kept == []


def test_turns_of_a_user_are_kept_without_a_probability():
  whole = batch()
  trained = np.ones((2, 3, 3), bool)
  trained[0, 2, :2] = False
  own = whole.responses.replace(trained=trained)
  (first, _) = kept_of(whole.replace(responses=own))
  assert first.members[1].p == [None, None, 0.45]


def test_long_answers_and_large_groups_are_cut(monkeypatch):
  monkeypatch.setattr(report_groups, 'TOKENS', 2)
  monkeypatch.setattr(report_groups, 'MEMBERS', 1)
  (first, second) = kept_of(batch())
  assert [len(g.members) for g in (first, second)] == [1, 1]
  assert (first.size, second.size) == (2, 3)
  monkeypatch.setattr(report_groups, 'MEMBERS', 3)
  own = kept_of(batch())[0].members[1]
  assert own.length == 3 and own.tokens == ['<6>', '<7>'] and len(own.p) == 2


@pytest.mark.parametrize(
  'text', ['', '{"objective": "gft"', '[]', '{"groups": [{"members": [{}]}]}']
)
def test_a_damaged_file_is_left_out(tmp_path, caplog, text):
  path = tmp_path / 'gft.json'
  path.write_text(text)
  assert report_groups.read(path) is None
  assert f'{path} holds no groups' in caplog.text
