"""A reward model: scores against whole sequences, pairs against loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
import torch
import transformers
from flax.training.train_state import TrainState

from gft_jax import huggingface
from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import Architecture, ConfigError
from gft_jax.models import reward_model
from gft_jax.models.transformer import Transformer
from gft_jax.ops import losses

ARCHITECTURE = Architecture(
  vocab_size=32, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32,
  tied_head=True,
)  # fmt: skip
MODEL = Transformer(ARCHITECTURE)


@pytest.fixture(scope='module')
def params():
  policy = MODEL.init(
    jax.random.key(0), jnp.ones((1, 1), int), jnp.ones(1, int)
  )['params']
  return reward_model.init(jax.random.key(1), policy)


def pairs(lengths):
  """Random prompts with answers of the lengths [B, 2]."""
  generator = np.random.default_rng(0)
  lengths = np.array(lengths, np.int32)
  batch = len(lengths)
  tokens = generator.integers(0, 32, (batch, 2, 6), np.int32)
  real = np.arange(6) < lengths[..., None]
  return GroupBatch(
    prompts=Prompts(
      generator.integers(0, 32, (batch, 5), np.int32),
      generator.integers(1, 6, batch, np.int32),
      np.arange(batch),
    ),
    responses=Responses(
      np.where(real, tokens, 0), lengths, np.zeros(real.shape, np.float32)
    ),
    rewards=np.zeros(lengths.shape, np.float32),
    origin=np.zeros(lengths.shape, np.int32),
    member_mask=lengths > 0,
  )


def test_a_score_is_that_of_the_whole_sequence(params):
  batch = pairs([[6, 3], [1, 0], [4, 6]])
  scores = jax.jit(reward_model.scores, static_argnums=0)(MODEL, params, batch)
  assert scores.dtype == jnp.float32
  for b in range(3):
    prompt = batch.prompts.tokens[b, : batch.prompts.length[b]]
    for g in range(2):
      answer = batch.responses.tokens[b, g, : batch.responses.length[b, g]]
      tokens = np.concatenate([prompt, answer])[None]
      hidden = MODEL.apply(
        {'params': params}, tokens, np.array([tokens.size])
      ).hidden
      expected = (hidden @ params['score'])[0, 0]
      assert scores[b, g] == pytest.approx(float(expected), abs=1e-5)


def test_the_head_of_the_policy_is_left_out_and_the_new_one_is_small():
  width = 4095
  policy = {'embedding': jnp.zeros((2, width)), 'head': jnp.zeros((width, 2))}
  params = reward_model.init(jax.random.key(0), policy)
  assert set(params) == {'embedding', 'score'}
  assert params['score'].shape == (width, 1)
  assert float(jnp.std(params['score'])) == pytest.approx(1 / 64, rel=0.05)


@chex.variants(with_jit=True, without_jit=True)
class PreferenceLossTest(chex.TestCase):
  def test_literals(self):
    loss = self.variant(losses.preference_loss)(
      jnp.array([1.0, 0.0, 0.0, 500.0]), jnp.array([1.0, 2.0, 500.0, 0.0])
    )
    # ln 2; ln(1 + e^2); without overflow at both ends.
    np.testing.assert_allclose(
      loss, [0.6931472, 2.1269280, 500.0, 0.0], rtol=1e-6
    )

  def test_only_the_difference_counts(self):
    chosen, rejected = jnp.array([0.3, -1.0]), jnp.array([0.1, 2.0])
    loss = self.variant(losses.preference_loss)
    chex.assert_trees_all_close(
      loss(chosen, rejected), loss(chosen + 7, rejected + 7), atol=1e-6
    )


def test_a_pair_without_answers_counts_nothing(params):
  batch = pairs([[6, 3], [4, 2], [0, 0]])
  metrics = reward_model.compare(MODEL, params, batch)
  scores = np.asarray(reward_model.scores(MODEL, params, batch))[:2]
  margins = scores[:, 0] - scores[:, 1]
  assert metrics['loss'].weight == 2
  assert metrics['loss'].value == pytest.approx(
    np.mean(np.log1p(np.exp(-margins))), rel=1e-5
  )
  assert metrics['accuracy'].value == np.mean(margins > 0)
  assert metrics['margin'].value == pytest.approx(margins.mean(), abs=1e-6)
  # Its gradient is not NaN either.
  empty = pairs([[0, 0]])
  state = TrainState.create(
    apply_fn=MODEL.apply, params=params, tx=optax.sgd(1.0)
  )
  after, _ = reward_model.update(state, empty, model=MODEL)
  chex.assert_trees_all_equal(after.params, params)


def test_updates_learn_the_preference(params):
  batch = pairs([[6, 3], [4, 2], [5, 5], [1, 6]])
  state = TrainState.create(
    apply_fn=MODEL.apply, params=params, tx=optax.adam(1e-2)
  )
  step = jax.jit(reward_model.update, static_argnames='model')
  for _ in range(30):
    state, metrics = step(state, batch, model=MODEL)
  assert metrics['accuracy'].value == 1
  assert metrics['loss'].value < 0.05


def tiny_tokenizer():
  ids = {'<pad>': 0, '<eos>': 1}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, '<pad>'))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, eos_token='<eos>', pad_token='<pad>'
  )


def write_classifier(folder, family, labels=1):
  """A random classifier of transformers, with its tokenizer."""
  config = transformers.AutoConfig.for_model(
    family,
    vocab_size=32,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_labels=labels,
    pad_token_id=0,
  )
  model = transformers.AutoModelForSequenceClassification.from_config(config)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.normal_(0.0, 0.3, generator=generator)
  model.save_pretrained(folder)
  tiny_tokenizer().save_pretrained(folder)
  return model.eval()


def torch_score(model, tokens):
  with torch.no_grad():
    row = torch.tensor(tokens[None], dtype=torch.long)
    return model(row).logits[0, 0].item()


@pytest.mark.parametrize('family', ['llama', 'qwen2'])
def test_folders_agree_with_transformers(family, tmp_path):
  """Their scores, ours, and theirs of the folder that we save."""
  theirs = write_classifier(tmp_path / 'theirs', family)
  model, params, tokenizer = huggingface.load_reward_model(tmp_path / 'theirs')
  huggingface.save(tmp_path / 'ours', model, params, tokenizer)
  written = transformers.AutoModelForSequenceClassification.from_pretrained(
    tmp_path / 'ours'
  ).eval()

  batch = pairs([[6, 3], [1, 2], [4, 6]])
  # They look for the padding token, which is no word then.
  asked, answered = batch.prompts.tokens, batch.responses.tokens
  asked[...], answered[...] = np.maximum(asked, 1), np.maximum(answered, 1)
  scores = np.asarray(reward_model.scores(model, params, batch))
  for b, g in np.ndindex(3, 2):
    tokens = np.concatenate(
      [
        asked[b, : batch.prompts.length[b]],
        answered[b, g, : batch.responses.length[b, g]],
      ]
    )
    assert torch_score(theirs, tokens) == pytest.approx(
      float(scores[b, g]), abs=1e-4
    )
    assert torch_score(written, tokens) == torch_score(theirs, tokens)


def test_a_policy_is_no_reward_model_and_the_reverse(params, tmp_path):
  tokenizer = tiny_tokenizer()
  huggingface.save(tmp_path / 'scored', MODEL, params, tokenizer)
  with pytest.raises(ConfigError, match="is not \\['LlamaForCausalLM'\\]"):
    huggingface.load(tmp_path / 'scored')
  policy = {name: x for name, x in params.items() if name != 'score'}
  huggingface.save(tmp_path / 'policy', MODEL, policy, tokenizer)
  with pytest.raises(ConfigError, match='ForSequenceClassification'):
    huggingface.load_reward_model(tmp_path / 'policy')


def test_a_classifier_of_two_labels_is_refused(tmp_path):
  write_classifier(tmp_path, 'llama', labels=2)
  with pytest.raises(ConfigError, match='has 2 labels, not 1'):
    huggingface.load_reward_model(tmp_path)
