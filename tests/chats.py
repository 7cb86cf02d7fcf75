"""A chat template, a tokenizer of bytes, and what a run makes of a row."""

import tokenizers
import transformers

from gft_jax.config import DataConfig
from gft_jax.data import chat, encoding

CHATML = (
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASKED = [
  {'role': 'system', 'content': 'Be terse.'},
  {'role': 'user', 'content': 'What is 1+1?'},
]


def bytes_tokenizer(template, eos='<|im_end|>'):
  """A token for every byte, and for what opens and closes a turn."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  model = tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, [])
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(['<|im_start|>', '<|im_end|>', '<|endoftext|>'])
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token=eos
  )
  tokenizer.chat_template = template
  return tokenizer


def write(asked, answered, tokenizer, **settings):
  writer = chat.Writer(DataConfig(**settings), tokenizer)
  asked = writer.asked(asked)
  return writer.answer(asked, answered, writer.prompt(asked))


def encoded(asked, answered, tokenizer, **settings):
  writer = chat.Writer(DataConfig(**settings), tokenizer)
  written = write(asked, answered, tokenizer, **settings)
  ((ids, trained),) = encoding.encode_answers([written], writer)
  trained = [True] * len(ids) if trained is None else trained.tolist()
  return ids.tolist(), trained


def prompt_and_answer(asked, answered, tokenizer, **settings):
  """The texts whose ids a run would train on."""
  writer = chat.Writer(DataConfig(**settings), tokenizer)
  ids, trained = encoded(asked, answered, tokenizer, **settings)
  prompt = writer.prompt(writer.asked(asked))
  assert chat.unescaped(prompt) == tokenizer.decode(
    *encoding.encode_texts([prompt], tokenizer)
  )
  return chat.unescaped(prompt), tokenizer.decode(ids), trained
