"""What launches on pods, and the check that a recipe fits a TPU slice.

No cloud, no cluster and no TPU compiler is here.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'
RECIPE = str(EXPERIMENTS / 'configs/paper/gft_qwen2_5_math_1_5b.py')


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(EXPERIMENTS)
  monkeypatch.syspath_prepend(EXPERIMENTS / 'pods')
  import compile_check

  yield compile_check
  sys.modules.pop('compile_check')


def test_collectives_are_counted_with_the_bytes_of_their_results(script):
  text = """
  %a = bf16[2,512]{1,0} all-gather(bf16[1,512]{1,0} %x), dimensions={0}
  %b = (f32[4]{0}, f32[8]{0}) all-reduce(f32[4]{0} %y, f32[8]{0} %z)
  %c = f32[1048576]{0} all-gather-start(f32[65536]{0} %w)
  %d = f32[4]{0} add(f32[4]{0} %y, f32[4]{0} %all-reduce.1)
  """
  found = script.collectives(text)
  assert found['all-gather'] == {'count': 2, 'mb': 4.0}
  assert found['all-reduce'] == {'count': 1, 'mb': 0.0}
  assert set(found) == {'all-gather', 'all-reduce'}


@pytest.mark.parametrize(
  'topology, words',
  [
    ('v9:4x4', 'is not one of v4, v5e, v5p, v6e'),
    ('v5e', "'v5e' is not of the form v5e:4x4"),
    ('v5e:sixteen', 'is not of the form v5e:4x4'),
  ],
)
def test_a_mistyped_topology_is_one_line(script, capsys, topology, words):
  assert script.main(['--config', RECIPE, '--topology', topology]) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


def test_the_shape_of_a_hub_id_is_known(script):
  import command

  config = command.load_recipe(RECIPE, []).config
  assert script.shape_of(config).width == 1536


TRAIN = 'experiments/train.py --config a.py --workdir runs/b'
PLACES = {
  'TPU': 'slice',
  'ZONE': 'zone',
  'NAME': 'run1',
  'IMAGE': 'image',
  'CLAIM': 'claim',
}


def launch(script, *arguments, **places):
  command = ['bash', f'experiments/pods/{script}', *arguments]
  return subprocess.run(
    command,
    cwd=EXPERIMENTS.parent,
    env=os.environ | places,
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ('script', 'count', 'words'),
  [
    (
      'local.sh',
      ['2'],
      'JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 CUDA_VISIBLE_DEVICES=1 python',
    ),
    (
      'tpu_pod.sh',
      [],
      'gcloud compute tpus tpu-vm ssh slice --zone=zone --worker=all'
      ' --command=cd gft_jax && GFT_JAX_PROCESSES=auto .venv/bin/python',
    ),
    ('slurm.sh', [], 'srun --kill-on-bad-exit=0 env GFT_JAX_PROCESSES=auto'),
    ('gke.sh', ['4'], 'JAX_COORDINATOR_ADDRESS, value: "run1-0.run1:12355"'),
  ],
)
def test_a_dry_run_says_what_would_run(script, count, words):
  arguments = ['--dry-run', *count, '--config', 'a.py', '--workdir', 'runs/b']
  found = launch(script, *arguments, **PLACES)
  assert (found.returncode, found.stderr) == (0, '')
  assert words in found.stdout
  plain = re.sub(r'pods/\.\./|[",\[\]]', '', found.stdout)
  assert TRAIN in plain
  script = EXPERIMENTS / 'pods' / script
  assert subprocess.run(['bash', '-n', script]).returncode == 0


def test_the_job_of_kubernetes_gives_each_pod_its_number():
  yaml = pytest.importorskip('yaml')
  arguments = ['--dry-run', '4', '--config', 'a.py', '--workdir', '/runs/b']
  text = launch('gke.sh', *arguments, **PLACES).stdout
  service, job = yaml.safe_load_all(text)
  assert service['spec']['clusterIP'] == 'None'
  assert job['spec']['completions'] == job['spec']['parallelism'] == 4
  pod = job['spec']['template']['spec']
  assert pod['subdomain'] == service['metadata']['name']
  (container,) = pod['containers']
  assert container['command'][2:] == arguments[2:]
  index = container['env'][2]['valueFrom']['fieldRef']['fieldPath']
  assert index.endswith("['batch.kubernetes.io/job-completion-index']")


@pytest.mark.parametrize('script', ['local.sh', 'gke.sh', 'tpu_pod.sh'])
def test_a_launch_without_its_numbers_is_one_line(script):
  found = launch(script, '--config', 'a.py')
  assert found.returncode and not found.stdout
  assert found.stderr.count('\n') == 1
