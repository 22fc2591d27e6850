"Write README.md from nbs/index.ipynb: prose, fenced code, text outputs, and absolute links to pages"

import json
import re
import tomllib
from pathlib import Path

root = Path(__file__).parents[1]


def readme() -> str:
    "The text of the README"
    site = tomllib.loads((root / 'pyproject.toml').read_text())['project']['urls']['Documentation']
    parts = ['<!-- `make readme` writes this file from nbs/index.ipynb: edit the notebook. -->']
    for cell in json.loads((root / 'nbs' / 'index.ipynb').read_text())['cells']:
        source = ''.join(cell['source']).strip()
        if cell['cell_type'] == 'markdown':
            source = re.sub(r'\]\((?!https?:|#)([\w/]+\.html)', rf']({site}\1', source)
            parts.append(source.replace('](images/', '](nbs/images/'))
        elif not re.match(r'#\|\s*hide', source):
            parts.append(f'```python\n{source}\n```')
            for output in cell['outputs']:
                text = output.get('text') or output.get('data', {}).get('text/plain')
                if text:
                    parts.append('```\n' + ''.join(text).strip() + '\n```')
    return '\n\n'.join(parts) + '\n'


if __name__ == '__main__':
    (root / 'README.md').write_text(readme())
