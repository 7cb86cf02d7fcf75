"""Folders; repositories of a hub on this machine; no hub at all."""

import contextlib
import errno
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import huggingface_hub
import pytest

from gft_jax.config import ConfigError
from gft_jax.huggingface import hub

ROOT = pathlib.Path(__file__).parents[2]
COMMIT = 'a' * 40
FILES = {
  name: name.encode()
  for name in (
    *('config.json', 'generation_config.json', 'README.md'),
    *('tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja'),
    *('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'),
    *('model.safetensors.index.json', 'pytorch_model.bin'),
    *('original/consolidated.00.pth', 'flax_model.msgpack'),
  )
}
WANTED = {
  name
  for name in FILES
  if name.startswith(('model', 'tok', 'chat', 'config', 'generation'))
}
# Each named in the address: what the hub's servers answer.
FAILURES = {
  'gated': (403, 'GatedRepo'),
  'absent': (404, 'RepoNotFound'),
  'no-revision': (404, 'RevisionNotFound'),
}


class Hub(http.server.BaseHTTPRequestHandler):
  """The part of the hub's protocol that a download of a snapshot speaks."""

  def do_GET(self):
    for name, (status, code) in FAILURES.items():
      if name in self.path:
        return self._send(status, b'', {'X-Error-Code': code})
    name = self.path.split(f'/resolve/{COMMIT}/')[-1]
    if name in FILES:
      etag = hashlib.sha1(FILES[name]).hexdigest()
      headers = {'X-Repo-Commit': COMMIT, 'ETag': f'"{etag}"'}
      return self._send(200, FILES[name], headers)
    if '/tree/' in self.path:
      listed = [
        {'type': 'file', 'path': name, 'size': len(body), 'oid': COMMIT}
        for name, body in FILES.items()
      ]
      return self._send(200, json.dumps(listed).encode(), {})
    siblings = [{'rfilename': name} for name in FILES]
    about = {'id': 'owner/name', 'sha': COMMIT, 'siblings': siblings}
    return self._send(200, json.dumps(about).encode(), {})

  do_HEAD = do_GET

  def _send(self, status, body, headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(body)

  def log_message(self, *arguments):
    pass


@contextlib.contextmanager
def serve():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


ASK = """
import json, sys
from gft_jax.config import ConfigError
from gft_jax.huggingface import hub

found = {}
for name in sys.argv[2:]:
  try:
    folder = hub.folder_of(name, weights=sys.argv[1] == 'weights')
    files = (p for p in folder.rglob('*') if p.is_file())
    found[name] = sorted(str(p.relative_to(folder)) for p in files)
  except ConfigError as error:
    found[name] = str(error)
print(json.dumps(found))
"""


def ask(endpoint, home, what, *names):
  """folder_of in a process whose hub is at `endpoint`: files, or the error."""
  # Its address is read when the library is imported.
  environment = os.environ | {'HF_ENDPOINT': endpoint, 'HF_HOME': str(home)}
  done = subprocess.run(
    [sys.executable, '-c', ASK, what, *names],
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def test_a_snapshot_is_fetched_without_what_is_not_read(tmp_path):
  """And stands in the cache when the hub is gone."""
  with serve() as endpoint:
    found = ask(
      *(endpoint, tmp_path, 'weights', 'owner/name', 'owner/name@v1.0'),
      *('owner/gated', 'owner/absent', 'owner/name@no-revision'),
    )
    small = ask(endpoint, tmp_path / 'small', 'text', 'owner/name')
  assert set(found['owner/name']) == set(found['owner/name@v1.0']) == WANTED
  assert set(small['owner/name']) == {
    name for name in WANTED if not name.startswith('model')
  }
  start = 'is neither a folder nor a hub id within reach: '
  assert found['owner/gated'].startswith(f'owner/gated {start}it is gated')
  assert f'{start}no such repository' in found['owner/absent']
  assert (
    f'{start}the repository has no such rev'
    in (found['owner/name@no-revision'])
  )
  assert ask(endpoint, tmp_path, 'weights', 'owner/name') == {
    'owner/name': found['owner/name']
  }


def test_without_a_hub_or_a_copy(tmp_path):
  nobody = 'http://127.0.0.1:9'
  found = ask(nobody, tmp_path, 'weights', 'runs/tpyo')
  assert found['runs/tpyo'] == (
    'runs/tpyo is neither a folder nor a hub id within reach: the hub does not'
    ' answer, and no copy is cached here'
  )


def test_what_is_asked_of_the_hub(monkeypatch, tmp_path):
  calls = []

  def snapshot_download(*arguments, **settings):
    calls.append((arguments, settings['revision']))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  assert hub.folder_of('Qwen/Qwen2.5-Math-1.5B') == tmp_path
  assert hub.folder_of('meta-llama/Llama-3.2-3B@refs/pr/1') == tmp_path
  assert calls == [
    (('Qwen/Qwen2.5-Math-1.5B',), None),
    (('meta-llama/Llama-3.2-3B',), 'refs/pr/1'),
  ]


def test_a_folder_comes_before_the_hub(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
  folder = pathlib.Path('owner/name')
  folder.mkdir(parents=True)
  assert hub.folder_of('owner/name') == hub.folder_of(folder) == folder


@pytest.mark.parametrize(
  'name', ['/no/where', './owner/name', 'name', 'a/b/c', '~/x', 'a/b@', 'a /b']
)
def test_what_is_neither(name, monkeypatch):
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
  with pytest.raises(ConfigError, match=r'no folder .*not a hub id \(owner/'):
    hub.folder_of(name)


def test_a_full_disk_is_one_line(monkeypatch):
  def snapshot_download(*_, **__):
    raise OSError('No space left\non device')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  with pytest.raises(ConfigError, match='reach: No space left on device'):
    hub.folder_of('owner/name')


def test_a_cache_that_cannot_be_written_names_its_variable(monkeypatch):
  def snapshot_download(*_, **__):
    raise OSError(errno.EROFS, 'Read-only file system', '/models/hub')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
  with pytest.raises(ConfigError, match=r'/models/hub cannot be .*HF_HOME=DIR'):
    hub.folder_of('owner/name')


def test_without_a_home_directory_the_hub_asks_for_one(monkeypatch):
  """Its library would make a folder whose name is ~."""
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
  place = '~/.cache/huggingface/hub'
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', place)
  with pytest.raises(ConfigError, match=r'is none .HOME .*set HF_HOME=DIR'):
    hub.folder_of('owner/name')
