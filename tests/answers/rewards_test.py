r"""What an answer says and is worth, beside the official code's own results."""

import functools
import json
import pathlib
import re
import time

import pytest

from gft_jax import answers
from gft_jax.answers import AnswerError, GoldError
from gft_jax.config import RewardConfig

OFFICIAL = json.loads(
  (pathlib.Path(__file__).parents[1] / 'golden/grading.json').read_text()
)


@pytest.mark.parametrize(
  'text, content',
  [
    (r'so \boxed{18}.', '18'),
    (r'\boxed{1} or \boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    (r'\fbox{ 7 }', '7'),
    (r'\boxed {7}', '7'),
    (r'\boxed{\{x | x > 0\}}', r'\{x | x > 0\}'),
    (r'\boxed{3} and then \boxed{4', '3'),
    (r'} \boxed{3}', '3'),
    (r'\boxed{', None),
    (r'{18}', None),
    ('', None),
  ],
)
def test_last_boxed(text, content):
  assert answers.last_boxed(text) == content


def test_braces_without_end_are_read_in_one_pass():
  assert answers.last_boxed(r'\boxed{' * 200_000) is None


@pytest.mark.parametrize(
  'response, said',
  [
    (r'3, so \boxed{4} #### 5', '4'),
    ('x = 3\n#### 1,450 \nQ: next', '1,450'),
    ('The answer is 3.5 m. That is all.', '3.5 m'),
    ('the answer is: (B)', '(B)'),
    (' Paris\n', 'Paris'),
    ('#### Final answer\nThe answer is 5.', '5'),
    ('#### 18\n\nQuestion: What is 2 + 2?', '18'),
    (r'\boxed{1}' + ' ' * answers.MAX_CHARACTERS, None),
    ('<think>\n\n</think>\n\n2', '2'),
    (' [THINK]\\boxed{3}[/THINK] so 4. [/THINK]2', '2'),
    ('<think>' + '3 ' * answers.MAX_CHARACTERS + '</think>\n2\n', '2'),
    ('<think>no end 2', None),
    ('So <think>3</think>2', 'So 2'),
    ('x </think> 2 <think> and', None),
    (r'\boxed{7} <answer>8</answer> \boxed{9}', '8'),
    ('<answer>6</answer> <answer>7', '6'),
    ('<answer>*.*\n.*.</answer>', '*.*\n.*.'),
    (r'\boxed{\boxed{5}}', '5'),
    (r'\boxed{1}, \boxed{2} and \boxed{2}', '1, 2'),
    (r'\boxed{1} gives \boxed{2}', '2'),
    (r'\framebox{204} minutes', '204'),
    ('**Final Answer**\n\n$$\n18\n$$\nDone.', '18'),
    ('Answer choices: (A) 1 (B) 2', 'Answer choices: (A) 1 (B) 2'),
    ('The answer is approx. 5 m. Good.', 'approx. 5 m'),
    ('答案是 5。', '5。'),
    ('The answer is not 5. It is 6.', 'The  It is 6.'),
    ('<answer></answer>', None),
  ],
)
def test_final(response, said):
  assert answers.final(response) == said


@pytest.mark.parametrize(
  ('function', 'response', 'answer'),
  [
    ('math', r'\boxed{3} no, \boxed{ \dfrac{1}{2} }.', '1/2'),
    ('math', r'\boxed{\text{Evelyn}}', 'evelyn'),
    ('math', r'\boxed{\$1,200.00}', '1200'),
    ('math', r'\boxed{\left(1, 2\right)}', '(1,2)'),
    ('math', r'\boxed{2,1}', '1,2'),
    ('math', r'\boxed{\{2,1\}}', r'\{1,2\}'),
    ('math', r'\boxed{9{,}500}', '9500'),
    ('math', r'\boxed{0.5', '1/2'),
    ('math', 'so 7\n#### 1,800\nThat is all 3.', '1800'),
    ('math', 'She makes 9 * 2 = $18.', '18'),
    ('math', 'It is -3.50 or so', '-7/2'),
    ('math', r'<think>\boxed{3}</think>4', '4'),
    ('math', r'<think>\boxed{3}', None),
    ('math', r'nothing in \boxed{}', None),
    ('math', 'nothing', None),
    ('math', '?', None),
    ('math', 'so \ue000 it is \ue001 $7$', '7'),
    ('math', r'\boxed{' + '9' * 5000 + '}', '9' * 5000),
    ('exact', 'It is **Paris**.', 'paris'),
    ('mine:reward', 'about 7', '7'),
    ('choice', r'(A) or \boxed{C}', 'C'),
    ('choice', 'nothing', None),
    ('arithmetic', '7+8=15#15', '15'),
    ('arithmetic', '15', None),
  ],
)
def test_extract(function, response, answer):
  assert answers.extract(function, response) == answer


def test_what_is_extracted_costs_little_whatever_it_is():
  start = time.perf_counter()
  for piece in (
    'the answer is not ',
    '<think>',
    '<answer>',
    '**',
    '{',
    r'\boxed{',
    r'\text{',
    r'\text ',
    '1,',
    '1,234',
    '-',
    '####',
  ):
    answers.extract('math', piece * 1_000_000)
  assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
  'response, value',
  [
    (r'so \boxed{B}', 1),
    (r'\boxed{B. 12}', 1),
    (r'\boxed{\text{(B)}}', 1),
    ('The answer is B because A fails', 1),
    ('The answer is B bit long, so (C)', 0),
    (r'\boxed{B \cup C}', None),
    (r'\boxed{B, C, D}', None),
  ],
)
def test_choice_is_one_letter(response, value):
  if value is None:
    with pytest.raises(AnswerError):
      answers.choice('', 'B', response)
  else:
    assert answers.choice('', 'B', response) == value


@pytest.mark.parametrize(
  'answer, response, value',
  [
    ('Paris', r'It is \boxed{ paris}', 1),
    ('New York', 'The answer is new  york.', 1),
    ('Paris', 'It is Paris', 0),
    ('Paris', '<think>Rome</think><answer>**Paris**.</answer>', 1),
    ('Rome', '<think>Rome</think><answer>Paris</answer>', 0),
    ('Paris', r'\boxed{\text{Paris}}', 1),
    ('0.5', r'\boxed{1/2}', 0),
  ],
)
def test_exact(answer, response, value):
  assert answers.exact('', answer, response) == value


@pytest.mark.parametrize(
  'answer, response, value',
  [
    ('1000', r'\boxed{1,000.09}', 1),
    ('1000', r'\boxed{1000.11}', 0),
    ('-2.5', r'\boxed{-5/2}', 1),
    ('3e8', r'\boxed{300000000}', 1),
    ('18', 'The answer is $18.00 a day', 1),
    ('50', r'\boxed{50\%}', 1),
    ('0.5', r'\boxed{50\%}', 1),
    ('0.05', '0.05%', 0),
    ('5%', '0.05', 1),
    ('2.5', 'It takes 2 1/2 hours', 1),
    ('1000', '<think>7</think><answer>1{,}000 km</answer>', 1),
    ('7', '<think>7</think>It is 8.', 0),
    ('0', r'\boxed{0.0}', 1),
    ('-5', r'\boxed{-$5}', 1),
    ('0', r'\boxed{1e-9}', 0),
  ],
)
def test_numeric(answer, response, value):
  assert answers.numeric('', answer, response, tolerance=1e-4) == value


@pytest.mark.parametrize(
  'answer, response, error',
  [
    ('18', 'no idea', AnswerError),
    ('18', r'\boxed{1/0}', AnswerError),
    ('18', r'\boxed{18x}', AnswerError),
    ('18', r'\boxed{10**10**10}', AnswerError),  # Nothing is computed.
    ('many', '18', GoldError),
    ('1e999', '18', GoldError),
  ],
)
def test_numeric_reads_numbers_only(answer, response, error):
  grade = functools.partial(answers.numeric, '', answer, response)
  with pytest.raises(error):
    grade(tolerance=1e-4)


def test_format_and_length():
  assert answers.formatted('', '', 'a\nb', pattern='a.b') == 1
  assert answers.formatted('', '', 'ab', pattern='a.b') == 0
  assert answers.length('', '', 'x' * 5, limit=20) == 0.25
  assert answers.length('', '', 'x' * 50, limit=20) == 1


def test_the_default_format_is_a_box():
  grade = answers.built_in(RewardConfig())['format']
  assert grade('', '', r'so \boxed{18}') == 1
  assert grade('', '', r'so \boxed{}') == 0
  assert grade('', '', 'so 18') == 0


# Where this project's grader and the official one differ, and why.
REWARD_DIFFERENCES = {
  'no_box_he_answer_is_with_tail': 'the words after a number are not part of it',
  'percent_times100': '50 is not 0.5',
  'gt_units_text_raw': 'units of the reference do not count either',
  'gt_degree_raw': 'nor do degrees',
  'interval_paren_vs_mixed': 'an open end is not a closed one',
  'list_order': 'a list without brackets has no order',
  'gt_text_choice_raw': r'B is \text{B}',
  'pi': 'π is 3.14159 within the tolerance of decimals',
  'equation': 'both sides of an equation count',
}
EVAL_DIFFERENCES = {
  r'\boxed{(1,2]}': 'an open end is not a closed one',
  r'\boxed{3.83 \times 10^{35}}': '3.83e35 is that number',
}


def graded(grade, answer, response):
  try:
    return grade('', answer, response)
  except AnswerError:
    return 0.0
  except GoldError:
    assert not answer  # A null in the official case.
    return 0.0


def test_the_official_reward_cases_agree_or_are_explained():
  cases = OFFICIAL['reward_cases']['cases']
  differ = {
    case['id']
    for case in cases
    if graded(
      answers.mathematics, case['ground_truth'] or '', case['solution_str']
    )
    != case['expected_score']
  }
  assert len(cases) == 37
  assert differ == set(REWARD_DIFFERENCES)


def test_the_official_evaluation_cases_agree_or_are_explained():
  cases = OFFICIAL['eval_cases']['cases']
  letters = ('mmlu_stem', 'aqua')
  differ = set()
  for case in cases:
    grade = (
      answers.choice if case['data_name'] in letters else answers.mathematics
    )
    answer = case['expected_gt']
    if case['data_name'] == 'gaokao2023en':
      answer = case['example']['answer']  # Theirs is stripped of its LaTeX.
    if graded(grade, answer, case['response']) != case['expected_correct']:
      differ.add(case['response'])
  assert len(cases) == 19
  assert differ == set(EVAL_DIFFERENCES)


@pytest.mark.parametrize(
  'name, solution',
  [
    ('math_oai', lambda row: row['solution']),
    ('minerva_math', lambda row: row['solution']),
    ('aime24', lambda row: row['solution']),
    # Its solutions are proofs, with the answer somewhere inside.
    ('olympiadbench', lambda row: rf'\boxed{{{row["final_answer"][0]}}}'),
  ],
)
def test_the_experts_own_answers_are_right(shared, name, solution):
  """All of them; the official grader refuses its own \\text and degrees."""
  from gft_jax.data import benchmarks
  from gft_jax.rewards.grader import Grader

  path = shared / f'data/benchmarks/{name}.jsonl'
  golds = [row['answer'] for row in benchmarks.rows(name, path)]
  lines = path.read_text().splitlines()
  responses = [solution(json.loads(line)) for line in lines]
  settings = RewardConfig('math', workers=2, timeout_s=20.0)
  with Grader(settings) as grader:
    scores = grader.score([''] * len(golds), golds, responses)
  wrong = [i for i, value in enumerate(scores.values) if value != 1]
  assert not wrong


def test_references_that_no_answer_matches_in_the_official_reward(shared):
  r"""It strips \text, degrees and \$ of the response, not of the reference."""
  lines = (shared / 'data/benchmarks/math_oai.jsonl').read_text().splitlines()
  solutions = [json.loads(line)['solution'] for line in lines]
  raw = [answers.last_boxed(solution) for solution in solutions]
  lost = [
    answer for answer in raw if re.search(r'\\text|\^\{?\s*\\circ|\\\$', answer)
  ]
  assert (len(lost), len(raw)) == (27, 500)
  for answer in lost:
    assert answers.mathematics('', answer, rf'\boxed{{{answer}}}') == 1


@pytest.mark.slow
def test_every_expert_of_gsm8k_is_right(shared):
  import pyarrow.parquet

  from gft_jax.data import files
  from gft_jax.rewards.grader import Grader

  table = pyarrow.parquet.read_table(shared / 'data/gsm8k/train.parquet')
  experts = table['answer'].to_pylist()
  golds = [files.final_answer(expert) for expert in experts]
  with Grader(RewardConfig('math', workers=2)) as grader:
    scores = grader.score([''] * len(golds), golds, experts)
  assert len(golds) == 7473
  assert scores.values.min() == 1
