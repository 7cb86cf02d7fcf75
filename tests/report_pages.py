"""Written reports, read again."""

import html.parser


def drawn(folder):
  """Names of the figures of a run."""
  return {path.stem for path in (folder / 'report').glob('*.png')}


class Page(html.parser.HTMLParser):
  """Text of cells, images and headings; raises on tags that do not match."""

  VOID = ('meta', 'img', 'br')

  def __init__(self, path):
    super().__init__()
    self.open, self.cells, self.images = [], [], []
    self.texts = {}
    self.feed(path.read_text(encoding='utf-8'))
    assert not self.open

  def handle_starttag(self, tag, attrs):
    if tag == 'img':
      self.images.append(dict(attrs)['src'])
    if tag in ('td', 'th'):
      self.cells.append('')
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if {'td', 'th'} & set(self.open):
      self.cells[-1] += f' {data}'
    for tag in set(self.open):
      self.texts[tag] = self.texts.get(tag, '') + data
