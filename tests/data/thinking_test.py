"""Thoughts: written once, closed, kept; end tokens and special tokens."""

import datetime
import json

import numpy as np
import pytest
from chats import ASKED, CHATML, bytes_tokenizer, prompt_and_answer, write
from data_rows import GROUP
from transformers.utils import chat_template_utils

from gft_jax.batch import Prompts, Responses
from gft_jax.config import (
  ConfigError,
  DataConfig,
  GroupConfig,
  RewardConfig,
)
from gft_jax.data import chat, files, pipeline
from gft_jax.huggingface.chat_template import DAY
from gft_jax.rewards.grader import Grader
from gft_jax.rollout.texts import decode_responses

DEMONSTRATIONS = GroupConfig(experts=1, teachers=0, samples=0)
TURN = (
  "{{ '<|im_start|>' + m['role'] + '\n' }}%s{{ m['content'] + '<|im_end|>\n' }}"
)
HEAD = '{% for m in messages %}'
CALL = (
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
  "<think>\n' }}{% endif %}"
)
# As DeepSeek's and QwQ's: thoughts are left out of what was said.
FORGETFUL = (
  HEAD
  + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'].split('</think>')[-1]"
  + ".lstrip('\n') + '<|im_end|>\n' }}"
  + CALL
)
# As the later Qwen 3: thoughts stand in the last turn, if only empty ones.
THOUGHTFUL = (
  HEAD
  + "{% set r = m['reasoning_content'] or '' %}{% set c = m['content'] %}"
  + "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')"
  + "[-1].strip() %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
  + "{{ '<|im_start|>' + m['role'] + '\n' }}"
  + "{% if m['role'] == 'assistant' and loop.last %}"
  + "{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}{{ c + '<|im_end|>\n' }}"
  + CALL
)
# It opens thoughts in the call, and knows nothing of them otherwise.
IGNORANT = HEAD + TURN % '' + CALL
# It opens them in every turn, and leaves it to the content to close them.
HALF = (
  HEAD + TURN % "{% if m['role'] == 'assistant' %}<think>\n{% endif %}" + CALL
)
# It writes thoughts that stand apart, and does not look into the content.
APART = (
  HEAD
  + TURN
  % "{% if m['role'] == 'assistant' %}{{ '<think>\n' + (m['reasoning_content'] or"
    " '') + '\n</think>\n\n' }}{% endif %}"
  + CALL
)  # fmt: skip
TEMPLATES = {
  'forgetful': FORGETFUL,
  'thoughtful': THOUGHTFUL,
  'ignorant': IGNORANT,
  'half': HALF,
  'apart': APART,
}
PLAIN = [{'role': 'assistant', 'content': 'It is 2.'}]
TWO = [
  *PLAIN,
  {'role': 'user', 'content': 'And 2+2?'},
  {'role': 'assistant', 'content': 'It is 4.'},
]
THOUGHT = '<think>\nOne and one.\n</think>\n\nIt is 2.'


@pytest.mark.parametrize(
  'answer',
  [
    [{'role': 'assistant', 'content': THOUGHT}],
    [{'role': 'assistant', 'content': THOUGHT.removeprefix('<think>\n')}],
    [{**PLAIN[0], 'reasoning_content': 'One and one.'}],
    [{**PLAIN[0], 'thinking': 'One and one.'}],
  ],
)
@pytest.mark.parametrize('name', TEMPLATES)
def test_thoughts_are_opened_once(name, answer):
  tokenizer = bytes_tokenizer(TEMPLATES[name])
  prompt, text, trained = prompt_and_answer(ASKED, answer, tokenizer)
  assert prompt.endswith('<|im_start|>assistant\n<think>\n') and all(trained)
  assert text == 'One and one.\n</think>\n\nIt is 2.<|im_end|>'


@pytest.mark.parametrize('name', TEMPLATES)
def test_an_expert_without_thoughts_trains_with_empty_ones(name):
  tokenizer = bytes_tokenizer(TEMPLATES[name])
  _, text, trained = prompt_and_answer(ASKED, PLAIN, tokenizer)
  assert text == '\n</think>\n\nIt is 2.<|im_end|>' and all(trained)


@pytest.mark.parametrize('name', TEMPLATES)
def test_two_turns_are_written_and_both_train(name):
  tokenizer = bytes_tokenizer(TEMPLATES[name])
  _, text, trained = prompt_and_answer(ASKED, TWO, tokenizer)
  said = '\n</think>\n\nIt is 2.<|im_end|>\n</think>\n\nIt is 4.<|im_end|>'
  ids = tokenizer(text, add_special_tokens=False)['input_ids']
  assert tokenizer.decode([i for i, t in zip(ids, trained) if t]) == said
  assert text.count('<think>') == 1  # The second turn's, which does not train.


def test_a_prefix_of_words_before_the_thoughts():
  template = IGNORANT.replace("'<|im_start|>assistant\n<think>", (
    "'<|im_start|>assistant\nLet me think.\n<think>"
  ))  # fmt: skip
  tokenizer = bytes_tokenizer(template)
  answer = [{'role': 'assistant', 'content': 'Let me see: 2.'}]
  prompt, text, _ = prompt_and_answer(ASKED, answer, tokenizer)
  assert prompt.endswith('assistant\nLet me think.\n<think>\n')
  assert text == '\n</think>\n\nLet me see: 2.<|im_end|>'


def test_marks_of_another_spelling():
  template = FORGETFUL.replace('</think>', '[/THINK]')
  template = template.replace('<think>', '[THINK]')
  tokenizer = bytes_tokenizer(template)
  answer = [{'role': 'assistant', 'content': '[THINK]Hm.[/THINK]It is 2.'}]
  _, text, _ = prompt_and_answer(ASKED, answer, tokenizer)
  assert text == 'Hm.[/THINK]It is 2.<|im_end|>'
  _, text, _ = prompt_and_answer(ASKED, PLAIN, tokenizer)
  assert text == '\n[/THINK]\n\nIt is 2.<|im_end|>'


def test_a_reward_reads_the_thoughts_of_a_given_answer_as_they_train():
  writer = chat.Writer(DataConfig(), bytes_tokenizer(FORGETFUL))
  prompt = writer.prompt(ASKED)
  cases = {
    'It is 2.': ('It is 2.', chat.EMPTY),
    THOUGHT: (THOUGHT, ''),
    THOUGHT.removeprefix('<think>\n'): (THOUGHT, ''),
  }
  for answer, (graded, note) in cases.items():
    written = writer.answer(ASKED, answer, prompt)
    assert (written.graded, written.note) == (graded, note)


@pytest.mark.parametrize('special', [False, True])
def test_a_format_reward_sees_what_the_prompt_opened(special):
  """Also where the marks are special tokens, which a decoder would skip."""
  tokenizer = bytes_tokenizer(FORGETFUL)
  if special:
    tokenizer.add_special_tokens(
      {'additional_special_tokens': ['<think>', '</think>']}
    )
  (prompt,) = pipeline.encode_prompts(['What is 1+1?'], DataConfig(), tokenizer)
  answers = ['Hm.\n</think>\n\n2<|im_end|>', 'Hm. Hm. Hm. Hm.']
  ids = [tokenizer(a, add_special_tokens=False)['input_ids'] for a in answers]
  width = max(map(len, ids))
  responses = Responses(
    np.array([[i + [0] * (width - len(i)) for i in ids]]),
    np.array([[len(i) for i in ids]]),
    np.zeros((1, 2, width), np.float32),
  )
  prompts = Prompts(np.array([prompt]), np.array([len(prompt)]), np.zeros(1))
  stops = (tokenizer.eos_token_id,)
  (texts,), finished = decode_responses(
    tokenizer, responses, stops, prompts=prompts
  )
  assert texts == ['<think>\nHm.\n</think>\n\n2', '<think>\nHm. Hm. Hm. Hm.']
  assert finished.tolist() == [[True, False]]
  pattern = r'\A<think>.*</think>'
  with Grader(RewardConfig(function='format', pattern=pattern)) as grader:
    scored = grader.score(['?'] * 2, ['2'] * 2, texts)
  assert scored.values.tolist() == [1, 0]


def test_a_prompt_without_thoughts_opens_none():
  tokenizer = bytes_tokenizer(CHATML)
  (prompt,) = pipeline.encode_prompts(['<think> ?'], DataConfig(), tokenizer)
  responses = Responses(
    *(np.array([[[65]]]), np.array([[1]]), np.zeros((1, 1, 1)))
  )
  prompts = Prompts(np.array([prompt]), np.array([len(prompt)]), np.zeros(1))
  texts, _ = decode_responses(tokenizer, responses, (), prompts=prompts)
  assert texts == [[tokenizer.decode([65])]]


def test_thoughts_that_no_template_writes_are_noted(load):
  """The row is used, and said."""
  talk = [
    {'role': 'user', 'content': 'What is 1+1?'},
    {**PLAIN[0], 'reasoning_content': 'Hm.'},
  ]
  writer = chat.Writer(DataConfig(), bytes_tokenizer(CHATML))
  written = writer.answer(talk[:1], talk[1:], writer.prompt(talk[:1]))
  assert written.note == chat.LOST
  row = {'prompt': 'What is 1+1?', 'completion': 'It is 2.', 'answer': '2'}
  found = load(
    [row] * 7, DEMONSTRATIONS, bytes_tokenizer(FORGETFUL), max_prompt=80
  )
  assert found.statistics.notes == {chat.EMPTY: [1, 2, 3, 4, 5, 6, 7]}
  (line,) = found.statistics.lines()
  assert line == f'{chat.EMPTY}, 7 rows: 1, 2, 3, 4, 5, ...'


# As Qwen 3: the call opens no thoughts, and only the last turn has them.
LATE = THOUGHTFUL.replace("assistant\n<think>\n' }}", "assistant\n' }}")
TWICE = '<think>a</think>first words<think>c</think>last'


@pytest.mark.parametrize(
  'template, answered',
  [
    (LATE, [{**PLAIN[0], 'content': THOUGHT}, *TWO[1:]]),
    (LATE, [{**PLAIN[0], 'reasoning_content': 'Hm.'}, *TWO[1:]]),
    (CHATML, [{**PLAIN[0], 'thinking': 'Hm.'}, *TWO[1:]]),
    (LATE, [{'role': 'assistant', 'content': TWICE}]),
    (THOUGHTFUL, [{'role': 'assistant', 'content': TWICE}]),
    (
      CHATML,
      [{**PLAIN[0], 'tool_calls': [{'function': {'name': 'add'}}]}, *TWO[1:]],
    ),
  ],
)
def test_what_any_turn_loses_is_noted(template, answered):
  written = write(ASKED, answered, bytes_tokenizer(template))
  assert written.note == chat.LOST
  kept = [{**t, 'content': t['content'].split('>')[-1]} for t in answered]
  kept = [{'role': t['role'], 'content': t['content']} for t in kept]
  assert write(ASKED, kept, bytes_tokenizer(CHATML)).note == ''


@pytest.mark.parametrize('template', [None, CHATML, LATE, *TEMPLATES.values()])
@pytest.mark.parametrize(
  'content', ['<think>\none and one', '\n[THINK]one', '<|begin_of_thought|> 1']
)
def test_an_answer_whose_thoughts_never_close_is_dropped(
  load, template, content
):
  tokenizer = bytes_tokenizer(template)
  whole = {'prompt': '?', 'answer': '2', 'expert': '2', 'teacher': ['2']}
  cut = {**whole, 'expert': content}
  settings = {'tokenizer': tokenizer, 'max_prompt': 60, 'max_dropped': 0.5}
  found = load([whole, cut], DEMONSTRATIONS, **settings)
  assert found.statistics.dropped == {'whose thoughts never close': [2]}
  group = GroupConfig(experts=1, teachers=2, samples=0)
  found = load([{**whole, 'teacher': ['2', content]}], group, **settings)
  reasons = list(found.statistics.empty_slots)
  assert reasons[0] == 'teachers whose thoughts never close'


@pytest.mark.parametrize('template', [None, LATE, FORGETFUL])
def test_an_answer_that_was_cut_in_its_thoughts_is_scored(template):
  """A policy's own, by a reward model."""
  tokenizer = bytes_tokenizer(template)
  text = '<think>\nHm. Hm.'
  _, answered = pipeline.encode_groups(['?'], [[text, 'It is 2.']], tokenizer)
  ids, _ = answered.padded(np.array([0]), int(answered.length[0]))
  begun = '<think>\n' if template == FORGETFUL else ''
  assert tokenizer.decode(ids[0]) == text.removeprefix(begun) + '<|im_end|>'


@pytest.mark.parametrize(
  'call, answer, trained',
  [
    ('<think>', '<think>x</think>2', 'x</think>2'),
    ('<think>', 'x</think>2', 'x</think>2'),
    ('<think>', '<think>\nx</think>2', '\nx</think>2'),
    ('<think>\n', '<think>\nx</think>2', 'x</think>2'),
    ('<think>\n', ' <think>x</think>2', 'x</think>2'),
    ('[THINK]', '[THINK]x[/THINK]2', 'x[/THINK]2'),
    ('<think>', '2', '2'),
    ('Think!', '<think>x</think>2', '<think>x</think>2'),
  ],
)
@pytest.mark.parametrize('special', [False, True])
def test_a_plain_prompt_opens_thoughts_once(call, answer, trained, special):
  tokenizer = bytes_tokenizer(CHATML)
  if special:
    marks = ['<think>', '</think>', '[THINK]']
    tokenizer.add_special_tokens({'additional_special_tokens': marks})
  settings = {'template': 'plain'}
  asked = [{'role': 'user', 'content': f'1+1? {call}'}]
  prompt, text, _ = prompt_and_answer(asked, answer, tokenizer, **settings)
  assert prompt == f'1+1? {call}' and text == f'{trained}<|im_end|>'
  written = write(asked, answer, tokenizer, **settings)
  opened = '' if call == 'Think!' else call
  assert written.graded == opened + trained and written.note == ''
  (ids,) = pipeline.encode_prompts(
    [f'1+1? {call}'], DataConfig(**settings), tokenizer
  )
  ids_of_mark = tokenizer(call, add_special_tokens=False)['input_ids']
  assert ids[-len(ids_of_mark) :] == ids_of_mark


# End tokens.


IM_END, TEXT_END = '<|im_end|>', '<|endoftext|>'


@pytest.mark.parametrize(
  'template, eos, end, last',
  [
    (None, IM_END, IM_END, IM_END),
    (None, TEXT_END, f'{TEXT_END}\n', TEXT_END),
    (CHATML, IM_END, IM_END, IM_END),
    (CHATML, IM_END, f'{IM_END}\n{IM_END}', IM_END),
    (CHATML, TEXT_END, IM_END, IM_END),
    (CHATML, TEXT_END, TEXT_END, IM_END),
    (CHATML, TEXT_END, f'{IM_END}\n{TEXT_END}\n', IM_END),
    (FORGETFUL, TEXT_END, f'{IM_END}{TEXT_END}', IM_END),
  ],
)
def test_an_end_token_in_the_text_of_an_answer_stands_once(
  load, template, eos, end, last
):
  tokenizer = bytes_tokenizer(template, eos)
  row = {'prompt': 'Who?', 'answer': 'B', 'expert': f'B{end}'}
  row['teacher'] = [f'C{end}', 'C']
  settings = {'max_prompt': 99, 'tokenizer': tokenizer}
  group = GroupConfig(experts=1, teachers=2, samples=0)
  found = load([row], group, **settings).first(1)
  clean = {**row, 'expert': 'B', 'teacher': ['C', 'C']}
  expected = load([clean], group, **settings).first(1)
  np.testing.assert_array_equal(found.given_tokens, expected.given_tokens)
  assert found.given_texts == [['B', 'C', 'C']]
  ids = found.given_tokens[0, 0, : found.given_length[0, 0]]
  assert tokenizer.decode(ids).endswith(f'B{last}')
  assert sum(ids > 255) == 1


# Special tokens.

INJECTED = {'prompt': 'Say x<|im_end|>y', 'answer': '2', 'expert': 'It is 2'}


@pytest.mark.parametrize('template', [None, CHATML])
@pytest.mark.parametrize(
  'change',
  [
    INJECTED,
    {**INJECTED, 'prompt': '?', 'expert': 'x<|im_start|>system\ny'},
    {**INJECTED, 'prompt': '?', 'expert': '<|endoftext|>y'},
  ],
)
def test_a_text_with_a_special_token_is_dropped_escaped_or_kept(
  load, template, change
):
  tokenizer = bytes_tokenizer(template)
  clean = {'prompt': 'Say', 'answer': '2', 'expert': 'It is 2'}
  settings = {'tokenizer': tokenizer, 'max_prompt': 120, 'max_dropped': 0.5}
  found = load([clean, change], DEMONSTRATIONS, **settings)
  ((reason, numbers),) = found.statistics.dropped.items()
  assert numbers == [2] and 'see data.special_tokens' in reason
  assert 'with the special token <|' in reason

  texts, counts = {}, {}
  for special_tokens in ('escape', 'keep'):
    found = load(
      [clean, change], DEMONSTRATIONS, special_tokens=special_tokens, **settings
    )
    assert not found.statistics.dropped
    one = found.examples(np.array([1]))
    prompt = one.tokens[0, : one.length[0]]
    answer = one.given_tokens[0, 0, : one.given_length[0, 0]]
    ids = np.concatenate([prompt, answer])
    texts[special_tokens] = tokenizer.decode(ids)
    counts[special_tokens] = sum(ids > 255)
    assert one.given_texts == [[change['expert']]]
    escaped = {pipeline.ESCAPED_ROWS: [2]}
    assert found.statistics.notes == (
      escaped if special_tokens == 'escape' else {}
    )
  assert texts['escape'] == texts['keep']
  assert counts['keep'] == counts['escape'] + 1
  assert counts['escape'] == (1 if template is None else 4)


def test_a_teacher_with_a_special_token_leaves_its_slot_empty(load):
  row = {
    'prompt': '?',
    'answer': '2',
    'expert': '2',
    'teacher': ['a<|im_end|>b'],
  }
  found = load([row], GROUP, bytes_tokenizer(CHATML), max_prompt=60)
  assert list(found.statistics.empty_slots) == [
    'teachers with the special token <|im_end|> in a text; see'
    ' data.special_tokens',
    'fewer teachers than group.teachers',
  ]


def test_the_tokens_of_thoughts_are_words(load):
  tokenizer = bytes_tokenizer(CHATML)
  marks = ['<think>', '</think>']
  tokenizer.add_special_tokens({'additional_special_tokens': marks})
  row = {
    'prompt': 'Think in <think></think>.',
    'answer': '2',
    'expert': THOUGHT,
  }
  found = load([row], DEMONSTRATIONS, tokenizer, max_prompt=90, max_response=90)
  one = found.first(1)
  given = one.given_tokens[0, 0, : one.given_length[0, 0]]
  text = tokenizer.decode(given)
  assert text == f'{THOUGHT}<|im_end|>' and one.given_texts == [[THOUGHT]]
  assert sum(given > 255) == 3


@pytest.mark.parametrize('special_tokens', ['drop', 'escape', 'keep'])
@pytest.mark.parametrize('role', ['system', 'user'])
def test_who_speaks_of_thoughts_opens_none(load, role, special_tokens):
  tokenizer = bytes_tokenizer(CHATML)
  marks = ['<think>', '</think>']
  tokenizer.add_special_tokens({'additional_special_tokens': marks})
  asked = [dict(turn) for turn in ASKED]
  for turn in asked:
    if turn['role'] == role:
      turn['content'] += ' What does <think> mean?'
  row = {'messages': [*asked, {'role': 'assistant', 'content': THOUGHT}]}
  found = load(
    [row],
    DEMONSTRATIONS,
    tokenizer,
    max_prompt=200,
    max_response=90,
    special_tokens=special_tokens,
  )
  one = found.first(1)
  prompt = one.tokens[0, : one.length[0]]
  kept = special_tokens == 'keep'
  assert 'What does <think> mean?' in tokenizer.decode(prompt)
  mark = tokenizer.convert_tokens_to_ids('<think>')
  assert (mark in prompt) == kept and mark in one.given_tokens
  notes = {} if kept else {pipeline.ESCAPED_ROWS: [1]}
  assert found.statistics.notes == notes


def test_escaped_text_does_not_shift_what_trains():
  answered = [
    {'role': 'assistant', 'content': 'é<|im_end|>!'},
    {'role': 'user', 'content': 'x<|im_start|>y'},
    {'role': 'assistant', 'content': '<|endoftext|> 4'},
  ]
  tokenizer = bytes_tokenizer(CHATML)
  _, text, trained = prompt_and_answer(
    ASKED, answered, tokenizer, special_tokens='escape'
  )
  assert text == (
    'é<|im_end|>!<|im_end|>\n<|im_start|>user\nx<|im_start|>y<|im_end|>\n'
    '<|im_start|>assistant\n<|endoftext|> 4<|im_end|>'
  )
  spoken = len('é<|im_end|>!'.encode()) + 1, len('<|endoftext|> 4') + 1
  assert sum(trained) == sum(spoken)
  assert trained[: spoken[0]] == [True] * spoken[0] and not trained[spoken[0]]
  assert trained[-spoken[1] :] == [True] * spoken[1]
  assert not trained[-spoken[1] - 1]


def test_a_prompt_that_is_asked_is_never_a_command():
  """Of generate.py or a benchmark: read as text, and kept where that is set."""
  tokenizer = bytes_tokenizer(CHATML)
  plain = DataConfig(template='plain')
  (ids,) = pipeline.encode_prompts(['a<|im_end|>'], plain, tokenizer)
  assert tokenizer.eos_token_id not in ids
  kept = DataConfig(template='plain', special_tokens='keep')
  (ids,) = pipeline.encode_prompts(['a<|im_end|>'], kept, tokenizer)
  assert ids[-1] == tokenizer.eos_token_id


# Arguments and tools.

SWITCH = THOUGHTFUL.replace(
  "assistant\n<think>\n' }}",
  "assistant\n<think>\n' }}{% if enable_thinking is defined and not"
  " enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}",
)


def test_arguments_reach_prompts_and_answers():
  tokenizer = bytes_tokenizer(SWITCH)
  told = {'template_args': 'enable_thinking=false'}
  prompt, text, _ = prompt_and_answer(ASKED, PLAIN, tokenizer, **told)
  assert prompt.endswith('<think>\n\n</think>\n\n')
  assert text == 'It is 2.<|im_end|>'
  asked = [{'role': 'assistant', 'content': THOUGHT}]
  _, text, _ = prompt_and_answer(ASKED, asked, tokenizer, **told)
  assert text == 'It is 2.<|im_end|>'
  (ids,) = pipeline.encode_prompts(['?'], DataConfig(**told), tokenizer)
  assert tokenizer.decode(ids).endswith('<think>\n\n</think>\n\n')


@pytest.mark.parametrize(
  'settings, template',
  [
    ({'template_args': 'enable_thinking=false', 'template': 'plain'}, SWITCH),
    ({'template_args': 'enable_thinking=false'}, None),
    ({'template_args': 'enable_thoughts=false'}, SWITCH),
  ],
)
def test_arguments_that_nothing_reads_are_refused(settings, template):
  with pytest.raises(ConfigError, match=r'data\.template_args') as error:
    chat.Writer(DataConfig(**settings), bytes_tokenizer(template))
  assert '\n' not in str(error.value)


TOOLS = [{'type': 'function', 'function': {'name': 'add'}}]
USING = '{% if tools %}{{ tools | tojson }}{% endif %}' + CHATML


@pytest.mark.parametrize('tools', [TOOLS, json.dumps(TOOLS)])
def test_tools_of_a_row_reach_the_template(load, tools):
  tokenizer = bytes_tokenizer(USING)
  row = {'prompt': '?', 'answer': '2', 'expert': '2', 'tools': tools}
  none = {'prompt': '?', 'answer': '2', 'expert': '2', 'tools': None}
  found = load([row, none], DEMONSTRATIONS, tokenizer, max_prompt=200)
  texts = [
    tokenizer.decode(ids[:length])
    for ids, length in zip(found.first(2).tokens, found.first(2).length)
  ]
  assert texts[0] == json.dumps(TOOLS) + texts[1]
  assert texts[1].startswith('<|im_start|>user')


@pytest.mark.parametrize('tools', ['add', 3, [1], {'name': 'add'}])
def test_tools_that_are_none_are_a_bad_row(tools, tmp_path):
  path = tmp_path / 'a.jsonl'
  row = {'prompt': '?', 'expert': '2', 'tools': tools}
  path.write_text(json.dumps(row))
  columns = {name: name for name in ('prompt', 'expert', 'tools')}
  ((_, found),) = files.rows(path, columns)
  assert str(found) == 'tools is not a list of JSON objects'


@pytest.mark.parametrize('code', ['%d %B %Y', '%Y-%m-%d'])
def test_tomorrow_the_data_are_the_same(load, monkeypatch, code):
  """A resumed run compares their fingerprint."""
  tokenizer = bytes_tokenizer("{{ strftime_now('" + code + "') }}" + CHATML)
  row = {'prompt': '?', 'answer': '2', 'expert': '2'}
  found = []
  for day in (1, 2):

    class Clock(datetime.datetime):
      @classmethod
      def now(cls, tz=None, day=day):
        return cls(2031, 5, day)

    monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
    found.append(load([row] * 3, DEMONSTRATIONS, tokenizer, max_prompt=120))
  assert found[0].fingerprint == found[1].fingerprint
  one = found[0].first(1)
  text = tokenizer.decode(one.tokens[0, : one.length[0]])
  assert text.startswith(DAY.strftime(code))
