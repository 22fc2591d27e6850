"Which files are opened as images, and which never are"

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from fungi_fastai.data.file_kinds import image_extensions
from fungi_fastai.data.images import ImageError, open_image


def test_postscript_is_not_run_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('Ghostscript was started'))
    (tmp_path / 'photo.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n')
    with pytest.raises(ImageError, match='is not an image but a PostScript document'):
        open_image(tmp_path / 'photo.jpg')


@pytest.mark.parametrize('extension', sorted(image_extensions - {'.heic', '.heif', '.hif'}))  # Pillow writes no HEIC
def test_every_known_extension_can_be_read(tmp_path, extension):
    file = tmp_path / f'a{extension}'
    options = dict(save_all=True, append_images=[Image.new('RGB', (9, 6))]) if extension == '.mpo' else {}
    Image.fromarray(np.full((6, 9, 3), 200, np.uint8)).save(file, Image.registered_extensions()[extension], **options)
    assert open_image(file).size == (9, 6) and np.abs(np.asarray(open_image(file)).astype(int) - 200).max() < 3
