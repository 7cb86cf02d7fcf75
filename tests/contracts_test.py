"""The names that others call: each is there, and does what it says."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gft_jax
from gft_jax import config as config_lib
from gft_jax import huggingface, parallel
from gft_jax.batch import GroupBatch, Prompts, Responses
from gft_jax.config import Architecture, Config, ConfigError, override
from gft_jax.data import arithmetic
from gft_jax.models.forward import token_logprobs
from gft_jax.models.transformer import Transformer
from gft_jax.ops import advantages, logprobs, losses, masking, passk
from gft_jax.ops.rectification import dynamic_coefficient
from gft_jax.parallel.mesh import make_mesh
from gft_jax.rollout import Sampling, sample_groups
from gft_jax.training.objectives import OBJECTIVES

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'

# Four prompts with three answers of five tokens.
B, G, T = 4, 3, 5


@pytest.fixture
def policy():
  tokenizer = arithmetic.tokenizer()
  architecture = Architecture(
    vocab_size=len(tokenizer),
    width=16,
    heads=2,
    kv_heads=1,
    head_size=8,
    mlp_width=32,
  )
  model = Transformer(architecture)
  one = jnp.ones((1, 1), jnp.int32)
  return model, model.init(jax.random.key(0), one, one[0])['params'], tokenizer


@pytest.fixture
def prompts():
  return Prompts(
    tokens=np.full((B, 6), 3, np.int32),
    length=np.full(B, 6, np.int32),
    index=np.arange(B, dtype=np.int32),
  )


@pytest.mark.parametrize('name', gft_jax.__all__)
def test_top_level_names_are_there(name):
  assert getattr(gft_jax, name) is not None


def test_train_is_the_function_whatever_was_imported():
  import gft_jax.loop

  assert inspect.isfunction(gft_jax.train)
  assert gft_jax.train is gft_jax.loop.train
  assert list(inspect.signature(gft_jax.train).parameters) == [
    'config',
    'workdir',
  ]


def test_advantages():
  rewards = np.array([[1.0, 0.0, 1.0], [2.0, 2.0, 2.0]], np.float32)
  members = np.array([[True, True, False], [True, True, True]])
  expected = (1 - 0.5) / (np.std([1, 0], ddof=1) + 1e-6)
  found = advantages.group_normalized(rewards, members, epsilon=1e-6)
  np.testing.assert_allclose(found[0, :2], [expected, -expected], rtol=1e-6)
  assert not np.any(found[1])
  for function in (advantages.mean_centred, advantages.leave_one_out):
    assert function(rewards, members).shape == (2, 3)
    assert not np.any(function(rewards, members)[1])
  alone = np.array([[3.0]], np.float32), np.array([[True]])
  np.testing.assert_allclose(
    advantages.group_normalized(*alone), 3 / (1 + 1e-6), rtol=1e-6
  )
  assert advantages.mean_centred(*alone) == advantages.leave_one_out(*alone)
  assert advantages.mean_centred(*alone) == 3


def test_dynamic_coefficient():
  found = dynamic_coefficient(jnp.log(jnp.array([0.9, 0.7, 0.2])), tau=0.7)
  np.testing.assert_allclose(found, [1, 0.7, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
  'name', ['sft', 'dft', 'gft', 'grpo', 'psft', 'luffy', 'chord']
)
def test_token_losses(name):
  function = getattr(losses, f'{name}_token_loss')
  values = {
    'logp': jnp.full((B, G, T), -0.5),
    'behavior_logp': jnp.full((B, G, T), -0.5),
    'old_logp': jnp.full((B, G, T), -0.5),
    'advantages': jnp.ones((B, G)),
    'tau': 0.7,
    'clip_low': 0.2,
    'clip_high': 0.2,
    'shaping': 0.1,
  }
  wanted = inspect.signature(function).parameters
  given = {name: values[name] for name in wanted if name in values}
  assert function(**given).shape == (B, G, T)


def test_reductions():
  values, mask = jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4), bool)
  for reduce, value in (
    (masking.token_mean, 1),
    (masking.sequence_mean, 1),
    (masking.token_sum, 4),
  ):
    total, weight = reduce(values, mask)
    assert total / weight == value


def test_log_probabilities():
  hidden, head = jnp.ones((2, 3, 4)), jnp.zeros((4, 7))
  targets = jnp.zeros((2, 3), jnp.int32)
  logp, entropy = logprobs.target_logprobs(hidden, head, targets, chunk=2)
  assert logp.dtype == jnp.float32 and logp.shape == (2, 3)
  np.testing.assert_allclose(logp, -np.log(7), rtol=1e-6)
  np.testing.assert_allclose(entropy, np.log(7), rtol=1e-6)
  loss, logp, _ = logprobs.fused_token_loss(
    hidden, head, targets, lambda logp, entropy, _: -logp, (), chunk=2
  )
  np.testing.assert_allclose(loss, 6 * np.log(7), rtol=1e-6)


def test_pass_at_k():
  found = passk.pass_at_k(jnp.array([1, 0]), jnp.array([4, 4]), 2)
  np.testing.assert_allclose(found, [0.5, 0], rtol=1e-6)


def test_a_folder_is_written_and_read(policy, tmp_path):
  huggingface.save(tmp_path, *policy)
  model, params, tokenizer = huggingface.load(tmp_path)
  assert model.architecture == policy[0].architecture
  jax.tree.map(np.testing.assert_array_equal, params, policy[1])
  assert len(tokenizer) == len(policy[2])


def test_sampled_groups_have_the_log_probabilities_of_the_model(
  policy, prompts
):
  model, params, tokenizer = policy
  responses = sample_groups(
    model,
    params,
    prompts,
    jax.random.key(1),
    group_size=G,
    max_tokens=T,
    sampling=Sampling(stop_ids=(tokenizer.eos_token_id,)),
  )
  assert isinstance(responses, Responses)
  assert responses.tokens.shape == (B, G, T)
  batch = GroupBatch(
    prompts=prompts,
    responses=responses,
    rewards=jnp.zeros((B, G)),
    origin=jnp.full((B, G), 2),
    member_mask=jnp.ones((B, G), bool),
  )
  logp, entropy = token_logprobs(model, params, batch, chunk=8)
  assert entropy.shape == (B, G, T)
  np.testing.assert_allclose(logp, responses.behavior_logp, atol=1e-5)


def test_the_loss_over_devices_is_one_number():
  devices = jax.device_count()
  one = (
    jnp.log(jnp.linspace(0.1, 0.9, G * T).reshape(1, G, T)),
    jnp.array([[1.0, 0.0, 0.0]]),
    jnp.ones((1, G), bool),
    jnp.ones((1, G, T), bool),
  )
  stacked = jax.tree.map(lambda x: jnp.stack([x] * devices), one)
  flat = jax.tree.map(lambda x: jnp.concatenate([x] * devices), one)
  mapped = parallel.pmapped_gft_loss(*stacked, tau=0.7)
  mesh = make_mesh(config_lib.MeshConfig(data=devices))
  sharded = parallel.shard_mapped_gft_loss(mesh, *flat, tau=0.7)
  np.testing.assert_allclose(mapped, sharded, rtol=1e-6)


def test_settings():
  changed = override(Config(), 'loss.tau=0.2')
  assert changed.loss.tau == 0.2
  with pytest.raises(ConfigError):
    override(changed, 'loss.tao=0.2')
  kinds = (
    *('Architecture', 'CheckpointConfig', 'Config', 'DataConfig', 'EvalConfig'),
    *('GroupConfig', 'LogConfig', 'LoraConfig', 'LossConfig', 'MeshConfig'),
    *('ModelConfig', 'OptimizerConfig', 'RewardConfig', 'SamplerConfig'),
    'Stage',
  )
  for name in kinds:
    assert inspect.isclass(getattr(config_lib, name))


def test_fifteen_objectives():
  assert {'sft', 'dft', 'gft', 'grpo', 'psft', 'luffy'} <= set(OBJECTIVES)
  assert len(OBJECTIVES) >= 15


@pytest.mark.parametrize(
  'path',
  [
    *('train.py', 'evaluate.py', 'export.py', 'generate.py'),
    *('configs/quickstart.py', 'configs/paper/gft.py'),
    *('configs/paper/sft.py', 'configs/paper/grpo.py'),
  ],
)
def test_scripts_and_recipes_keep_their_paths(path):
  assert (EXPERIMENTS / path).is_file()
