"Archives: hostile and broken ones, names in old encodings, links, formats under a wrong name, archives inside folders"

import base64
import gzip
import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import pack, small_jpeg
from PIL import Image

from fungi_fastai.core.errors import UserError
from fungi_fastai.data import archives
from fungi_fastai.data.file_kinds import readable_formats, unreadable_reason
from fungi_fastai.data.images import ImageError, open_image
from fungi_fastai.data.sources import Source
from fungi_fastai.data.tree import Tree

pytestmark = pytest.mark.usefixtures('own_home')


def classes(source, **options):
    "The number of images of each class, and the notes as one text"
    table = Source.of(source, **options).read(progress=False)
    assert all(map(os.path.exists, table.path))
    return table.groupby('label').size().to_dict(), ' '.join(table.attrs['notes'])


def pack_raw(file, names, encoding):
    "A zip whose names are in an old code page, without the flag for UTF-8"
    fillers = {f'{i:03}'.ljust(len(name.encode(encoding)), '_'): name for i, name in enumerate(names)}
    content = Path(pack(file, *fillers)).read_bytes()
    for filler, name in fillers.items():
        content = content.replace(filler.encode(), name.encode(encoding))
    Path(file).write_bytes(content)
    return file


def unpacked():
    return sorted(p.name for p in Path('data/unpacked').glob('*') if p.suffix != '.lock')


@pytest.mark.parametrize('name', ['../out.jpg', 'A/../../out.jpg', '/tmp/fungi_out.jpg', 'C:\\out.jpg', '..\\out.jpg'])
def test_archives_that_write_outside_are_refused(name, own_home):
    pack('climbs.zip', 'A/1.jpg', name)
    with pytest.raises(UserError, match='would write outside its folder'):
        Source.of('climbs.zip').read()
    with tarfile.open('climbs.tar.gz', 'w:gz') as t:
        info = tarfile.TarInfo(name)
        info.size = len(small_jpeg())
        t.addfile(info, io.BytesIO(small_jpeg()))
    with pytest.raises(UserError, match='would write outside its folder'):
        Source.of('climbs.tar.gz').read()
    assert unpacked() == [] and not list(own_home.parent.glob('out.jpg'))


def test_links_in_archives_are_refused():
    link = zipfile.ZipInfo('A/passwords.jpg')
    link.create_system, link.external_attr = 3, 0o120777 << 16
    pack('links.zip', 'A/1.jpg', extra=[(link, '/etc/passwd')])
    with pytest.raises(UserError, match='holds a link to a file outside the archive'):
        Source.of('links.zip').read()
    with tarfile.open('links.tar', 'w') as t:
        info = tarfile.TarInfo('A/1.jpg')
        info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
        t.addfile(info)
    with pytest.raises(UserError, match='holds a link to a file outside the archive'):
        Source.of('links.tar').read()
    assert unpacked() == []


@pytest.mark.parametrize('kind', ['zip', 'tar.gz'])
def test_bombs_are_refused_at_once(kind):
    bomb = bytes(150_000_000)
    if kind == 'zip':
        with zipfile.ZipFile('bomb.zip', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
            z.writestr('A/1.bmp', bomb)
    else:
        with tarfile.open('bomb.tar.gz', 'w:gz', compresslevel=1) as t:
            info = tarfile.TarInfo('A/1.bmp')
            info.size = len(bomb)
            t.addfile(info, io.BytesIO(bomb))
    start = time.time()
    with pytest.raises(UserError, match='over 100 times as much'):
        Source.of(f'bomb.{kind}').read()
    assert time.time() - start < 1 and unpacked() == []


def test_a_full_disk_is_noticed_before_unpacking(monkeypatch):
    from collections import namedtuple

    pack('a.zip', 'A/1.jpg')
    monkeypatch.setattr(archives.shutil, 'disk_usage', lambda p: namedtuple('U', 'total used free')(10, 10, 10))
    with pytest.raises(UserError, match='has 10 bytes free. Make room, or set data_dir'):
        Source.of('a.zip').read()


def test_broken_archives():
    complete = Path(pack('a.zip', *(f'A/{i}.jpg' for i in range(9)))).read_bytes()
    Path('cut.zip').write_bytes(complete[: len(complete) // 2])
    Path('cut.tar.gz').write_bytes(b'\x1f\x8b\x08\x00 and then something else')
    damaged = bytearray(complete)
    damaged[complete.index(b'A/3.jpg') + 100] ^= 255
    Path('damaged.zip').write_bytes(damaged)
    for name in ('cut.zip', 'cut.tar.gz', 'damaged.zip'):
        with pytest.raises(UserError, match='is not a complete archive'):
            Source.of(name).read()
    assert unpacked() == []


def test_a_locked_archive():
    data = bytearray(Path(pack('a.zip', 'A/1.jpg')).read_bytes())
    data[6] |= 1  # the flag of a password, in the file's header …
    data[data.index(b'PK\x01\x02') + 8] |= 1  # … and in the directory
    Path('locked.zip').write_bytes(data)
    with pytest.raises(UserError, match='locked with a password'):
        Source.of('locked.zip').read()


def test_an_archive_is_unpacked_once_by_content():
    pack('a.zip', 'A/1.jpg', 'B/2.jpg')
    first = Source.of('a.zip').prepare()
    modified = first.stat().st_mtime_ns
    assert Source.of('a.zip').prepare() == first and first.stat().st_mtime_ns == modified
    os.rename('a.zip', 'b.zip')
    pack('a.zip', 'A/1.jpg', 'C/2.jpg')
    assert Source.of('a.zip').prepare() != first
    (first / 'A' / '1.jpg').unlink()
    os.rename('b.zip', 'a.zip')
    assert len(Source.of('a.zip').read()) == 2, 'a lost file is unpacked again'


def test_names_without_the_flag_for_utf8():
    "A Mac writes such archives"
    data = Path(pack('a.zip', 'Röhrling/1.jpg')).read_bytes()
    plain = bytearray(data)
    for mark, offset in ((b'PK\x03\x04', 7), (b'PK\x01\x02', 9)):
        plain[data.index(mark) + offset] &= ~8
    Path('a.zip').write_bytes(plain)
    assert Source.of('a.zip').read().label.tolist() == ['Röhrling']


def test_a_killed_process_leaves_no_folder():
    pack('a.zip', *(f'A/{i}.jpg' for i in range(20)))
    code = """if True:
        import os, shutil
        from fungi_fastai.data.sources import Source
        copyfileobj, count = shutil.copyfileobj, []
        def dies(*args):
            copyfileobj(*args); count.append(1)
            if len(count) == 10: os._exit(9)
        shutil.copyfileobj = dies
        Source.of('a.zip').prepare()"""
    assert subprocess.run([sys.executable, '-c', code]).returncode == 9
    assert [n for n in unpacked() if not n.startswith('.')] == [] and len(unpacked()) == 1
    assert len(Source.of('a.zip').read()) == 20
    assert len(unpacked()) == 1, 'the leftover was deleted'


def test_concurrent_processes_share_one_folder():
    pack('a.zip', *(f'A/{i}.jpg' for i in range(500)))
    code = "from fungi_fastai.data.sources import Source; print(len(Source.of('a.zip').read()))"
    runs = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [r.communicate(timeout=300)[0].strip() for r in runs] == ['500'] * 3
    assert len(unpacked()) == 1


# names


@pytest.mark.parametrize(
    'encoding,names',
    [
        ('cp850', ['Kantarel å', 'Sød mælkehat']),
        ('cp852', ['Bedla vysoká', 'Ryzec syrovinka', 'Čirůvka']),
        ('cp866', ['Масляник', 'Сыроежка пищевая']),
        ('gbk', ['平菇', '鸡油菌']),
        ('shift_jis', ['エノキタケ', '舞茸']),
        ('cp1252', ['Märzschneckling', 'Grünling']),
        ('cp1251', ['Рыжик', 'Волнушка']),
    ],
)
def test_names_in_an_old_code_page_are_detected(encoding, names):
    file = pack_raw('names.zip', [f'{name}/{i}.jpg' for name in names for i in range(2)], encoding)
    found, notes = classes(file)
    assert found == dict.fromkeys(names, 2)
    assert 'names.zip does not say how its names are encoded' in notes and '--zip-encoding' in notes


def test_the_encoding_of_names_can_be_given():
    file = pack_raw('a.zip', ['ж/1.jpg', 'A/2.jpg'], 'cp866')
    assert classes(file, zip_encoding='cp866')[0] == {'ж': 1, 'A': 1}
    assert classes(file, zip_encoding='cp850')[0] == {'ª': 1, 'A': 1}, 'unpacked again under other names'
    with pytest.raises(UserError, match='holds a name that is not in the encoding utf-8'):
        classes(file, zip_encoding='utf-8')
    with pytest.raises(UserError, match="no encoding 'cp85O'"):
        Source.of(file, zip_encoding='cp85O')


def test_a_tar_with_names_in_an_old_code_page():
    with tarfile.open('a.tar', 'w', format=tarfile.GNU_FORMAT, encoding='cp1252') as t:
        add(t, 'Blätterpilz/1.jpg')
        add(t, 'Röhrling/2.jpg')
    assert classes('a.tar')[0] == {'Blätterpilz': 1, 'Röhrling': 1}


def add(archive, name, content=None, **fields):
    "Add a file, or a link by its fields, to an open tar"
    content = small_jpeg() if content is None else content
    info = tarfile.TarInfo(name)
    info.size = 0 if fields else len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


# what a file really is


def test_an_archive_is_opened_for_what_it_is_and_not_for_its_name():
    pack('photos.tar.gz', 'A/1.jpg', 'B/2.jpg')
    pack('download.php', 'A/1.jpg', 'B/2.jpg')
    for name, mode in {'tar.zip': 'w', 'tgz.zip': 'w:gz', 'no extension': 'w:xz'}.items():
        with tarfile.open(name, mode) as t:
            add(t, 'A/1.jpg')
            add(t, 'B/2.jpg')
    for name in ('photos.tar.gz', 'download.php', 'tar.zip', 'tgz.zip', 'no extension'):
        assert classes(name)[0] == {'A': 1, 'B': 1}, name


@pytest.mark.parametrize(
    'name,content,reason',
    [
        ('a.zip', b'Rar!\x1a\x07\x01\0', 'is a RAR archive, which Python does not read. Unpack it'),
        ('a.7z', b'7z\xbc\xaf\x27\x1c\0\4', 'is a 7z archive'),
        ('a.tar.zst', b'(\xb5/\xfdabc', 'compressed with zstd, which Python does not read'),
        ('a.zip', b'', 'is empty \\(0 bytes\\)'),
        ('a.zip', bytes(2000), 'holds only zero bytes'),
        (
            'a.zip',
            b'\n<!doctype html><title>Quota exceeded</title>',
            'is a web page \\(Quota exceeded\\), not an archive',
        ),
        ('a.zip', b'version https://git-lfs.github.com/spec/v1\noid', 'is a git-lfs pointer'),
        ('a.tar.gz', gzip.compress(b'path,label', mtime=0), 'a compressed file that holds no tar'),
        ('a.z01', b'PK\x07\x08PK\x03\x04', 'one part of an archive that was split'),
        ('a.part2.rar', b'Rar!', 'one part of an archive that was split'),
        ('a.zip', b'no zip at all', "is a text \\('no zip at all'\\), not an archive"),
    ],
)
def test_the_reason_why_an_archive_is_not_read(name, content, reason):
    Path(name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        Source.of(name).read()


def test_a_document_is_no_archive_of_photos():
    pack('report.zip', 'word/media/image1.jpg', extra=[('[Content_Types].xml', b'')])
    with pytest.raises(UserError, match='report.zip is a document of Word, and no archive of photos'):
        Source.of('report.zip').read()


def test_a_zip_in_pieces():
    whole = Path(pack('whole.zip', 'A/1.jpg', 'B/2.jpg')).read_bytes()
    pieces = {'a.zip.001': whole[:600], 'a.zip.002': whole[600:], 'last.zip': whole[600:]}
    for name, content in pieces.items():
        Path(name).write_bytes(content)
        with pytest.raises(UserError, match='one part of an archive that was split into several files'):
            Source.of(name).read()
    Path('b.zip.001').write_bytes(whole)  # the only piece
    assert classes('b.zip.001')[0] == {'A': 1, 'B': 1}


@pytest.mark.parametrize('method,name', [(9, 'Deflate64'), (98, 'PPMd'), (93, 'Zstandard')])
def test_a_compression_that_python_does_not_read(method, name, monkeypatch):
    monkeypatch.setitem(sys.modules, 'zipfile_deflate64', None)
    content = bytearray(Path(pack('a.zip', 'A/1.jpg')).read_bytes())
    content[8], content[content.index(b'PK\x01\x02') + 10] = method, method
    Path('a.zip').write_bytes(content)
    if method == 93 and sys.version_info >= (3, 14):
        pytest.skip('Python 3.14 reads Zstandard')
    with pytest.raises(UserError, match=f'is compressed with {name}.*Unpack it') as error:
        Source.of('a.zip').read()
    assert 'download' not in str(error.value) and 'truncated' not in str(error.value)


def test_a_tar_that_ends_too_early_or_is_damaged_in_the_middle():
    with tarfile.open('whole.tar', 'w') as t:
        for i in range(4):
            add(t, f'{"AB"[i % 2]}/{i}.jpg')
    content = Path('whole.tar').read_bytes()
    with tarfile.open('whole.tar') as t:
        third = t.getmembers()[2].offset
    Path('cut.tar').write_bytes(content[:third])
    assert 'may be truncated' in classes('cut.tar')[1]
    Path('hurt.tar').write_bytes(content[: third + 10] + b'x' + content[third + 11 :])
    with pytest.raises(UserError, match='after 2 files it is damaged'):
        Source.of('hurt.tar').read()


# links


@pytest.mark.parametrize('mode', ['w', 'w:gz'])
def test_links_inside_an_archive_are_read_as_the_files_they_lead_to(mode):
    with tarfile.open('a.tar', mode) as t:
        add(t, 'set/B/first.jpg', type=tarfile.SYMTYPE, linkname='../A/1.jpg')  # before the file
        add(t, 'set/A/1.jpg', small_jpeg(200))
        add(t, 'set/A/copy.jpg', type=tarfile.LNKTYPE, linkname='set/A/1.jpg')
        add(t, 'set/A/again.jpg', type=tarfile.SYMTYPE, linkname='copy.jpg')
        add(t, 'set/.store/f7', small_jpeg(100))
        add(t, 'set/B/annex.jpg', type=tarfile.SYMTYPE, linkname='../.store/f7')
        add(t, 'set/B/gone.jpg', type=tarfile.SYMTYPE, linkname='nowhere.jpg')
        add(t, 'set/B/loop.jpg', type=tarfile.SYMTYPE, linkname='loop.jpg')
        add(t, 'set/C', type=tarfile.SYMTYPE, linkname='A')
    found, notes = classes('a.tar')
    assert found == {'A': 3, 'B': 2}
    assert 'left out 2 links to files that are not in it (set/B/gone.jpg → nowhere.jpg' in notes
    assert '1 link to folders, which are read where they are (set/C → A)' in notes
    table = Source.of('a.tar').read().set_index('name').path
    assert Path(table['B/first.jpg']).read_bytes() == small_jpeg(200) and not os.path.islink(table['B/first.jpg'])
    assert Path(table['B/annex.jpg']).read_bytes() == small_jpeg(100)


def test_a_link_in_a_zip():
    link = zipfile.ZipInfo('B/same.jpg')
    link.create_system, link.external_attr = 3, 0o120777 << 16
    pack('a.zip', 'A/1.jpg', 'B/2.jpg', extra=[(link, '../A/1.jpg')])
    assert classes('a.zip')[0] == {'A': 1, 'B': 2}


# archives inside


def test_a_zip_for_each_class():
    for name in ('Amanita', 'Boletus', 'Coprinus'):
        pack(f'each/{name}.zip', '1.jpg', '2.jpg')
    pack('mixed/Russula.zip', 'Russula/1.jpg')
    with tarfile.open('mixed/Lactarius.tar.gz', 'w:gz') as t:
        add(t, 'photos/1.jpg')
    Path('mixed/Amanita').mkdir()
    Path('mixed/Amanita/1.jpg').write_bytes(small_jpeg())
    found, notes = classes('each')
    assert found == dict(Amanita=2, Boletus=2, Coprinus=2) and 'Amanita.zip, Boletus.zip, Coprinus.zip' in notes
    assert classes('mixed')[0] == dict(Amanita=1, Lactarius=1, Russula=1)
    with zipfile.ZipFile('outer.zip', 'w') as z:
        for file in sorted(Path('each').iterdir()):
            z.write(file, file.name)
    assert classes('outer.zip')[0] == found, 'an archive inside an archive reads as one inside a folder'


def test_an_empty_file_that_stands_for_a_folder():
    pack('s3.zip', 'oak/1.jpg', 'elm/1.jpg', extra=[('oak', b'')])
    assert classes('s3.zip')[0] == {'oak': 1, 'elm': 1}


def test_hidden_and_deeply_packed_images_are_named():
    pack('hidden.zip', '.data/oak/1.jpg', '.data/elm/1.jpg')
    with pytest.raises(UserError, match='2 files in hidden folders'):
        Source.of('hidden.zip').read()
    pack('0.zip', 'oak/1.jpg')
    for i in range(3):
        with zipfile.ZipFile(f'{i + 1}.zip', 'w') as z:
            z.write(f'{i}.zip')
    with pytest.raises(UserError, match='archive in an archive in an archive'):
        Source.of('3.zip').read()


def test_the_pieces_that_google_drive_makes_become_one_folder():
    pack('drive/Amanita-20240501T101010Z-001.zip', 'Amanita/1.jpg')
    pack('drive/Amanita-20240501T101010Z-002.zip', 'Amanita/2.jpg')
    pack('drive/drive-download-20240501T101010Z-001.zip', 'Boletus/1.jpg', 'Russula/1.jpg')
    assert classes('drive')[0] == dict(Amanita=2, Boletus=1, Russula=1)
    assert 'is one of several archives of a download' in classes('drive/Amanita-20240501T101010Z-002.zip')[1]
    assert 'of a download' not in classes('drive/drive-download-20240501T101010Z-001.zip')[1]


def test_an_archive_that_was_unpacked_already_is_not_read_twice():
    pack('set/all.zip', 'Fungi/A/1.jpg', 'Fungi/B/22.jpg')
    with zipfile.ZipFile('set/all.zip') as z:
        for name in z.namelist():
            target = Path('set', *Path(name).parts[1:])
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(z.read(name))
    found, notes = classes('set')
    assert found == {'A': 1, 'B': 1} and 'already in the folder: all.zip' in notes
    pack('set/B.zip', '1.jpg', '333.jpg', '4444.jpg')
    Path('set/B/1.jpg').write_bytes(small_jpeg() + b'other')
    with pytest.raises(UserError, match=r'holds B/1.jpg twice, in a folder and in B.zip, with different'):
        Source.of('set').read()


def test_inner_archives_that_are_not_read_have_a_reason():
    pack(
        'a.zip', 'A/1.jpg', 'B/2.jpg', extra=[('docs.zip', b''), ('C.7z', b'7z\xbc\xaf\x27\x1c'), ('D/d.rar', b'Rar!')]
    )
    pack('folder/A.zip', '1.jpg')
    pack('folder/B.zip', '1.jpg')
    Path('folder/C.zip').write_bytes(b'PK\x03\x04')
    pack('folder/D.zip', extra=[('D.pdf', b'%PDF')])
    pack('folder/E.zip', '../E.jpg')
    Path('folder/F.rar').write_bytes(b'Rar!\x1a\x07\0')
    found, notes = classes('folder')
    assert found == {'A': 1, 'B': 1}
    for words in (
        'C.zip is not a complete',
        'D.zip holds no images',
        'E.zip would write outside',
        'F.rar is a RAR archive',
    ):
        assert f'Not read: {words}' in notes
    notes = classes('a.zip')[1]
    assert 'docs.zip' in notes and 'C.7z' in notes and 'D/d.rar' in notes


# what is inside


def test_a_zip_reads_as_the_folder_it_was_made_from(own_home):
    for name in ('A/1', 'A/2.jpg_large', 'B/3.jpg', 'B/4.HEIC', 'B/5.NEF', 'B/notes', 'C/6.pdf', 'meta.xlsx'):
        path = own_home / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'%PDF' if name in ('B/notes', 'C/6.pdf') else small_jpeg())
    (own_home / 'photos/D').mkdir()
    with zipfile.ZipFile('photos.zip', 'w') as z:
        for path in sorted((own_home / 'photos').rglob('*')):
            z.write(path, path.relative_to(own_home / 'photos'))
    folder, packed = Source.of('photos').read(), Source.of('photos.zip').read()
    assert packed.drop(columns='path').equals(folder.drop(columns='path')) and len(folder) == 4
    assert packed.attrs['notes'] == folder.attrs['notes']
    notes = ' '.join(folder.attrs['notes'])
    for words in ('D', 'C (1 .pdf)', '1 .nef', *([] if 'HEIF' in readable_formats() else ['pip install'])):
        assert words in notes


# images under a wrong name

turned_heic = base64.b64decode(
    'AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA'
    'AAAERAAAIAAQAAAAAB7AABAAAAAAAAAFIAAgAAAAACPgABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp'
    'bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGE'
    'ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA'
    'AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEH'
    'BpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAH5tZGF0AAAA'
    'TigBrwngIzhH/+Cff/3+Gh9pDbxVd+U3lb1Hiu16P/i3ZT5T133Guw/zro/Hpi5/9rXKF1jib/+W+g+4vhZDaRF4QXF28dJ9YudCw+3IRwAAAA'
    'ZFeGlmAABNTQAqAAAACAABARIAAwAAAAEABgAAAAAAAA=='
)


def test_a_heic_is_upright_or_the_reason_says_what_to_install(own_home):
    (own_home / 'IMG_1.jpg').write_bytes(turned_heic)
    if 'HEIF' not in readable_formats():
        with pytest.raises(ImageError, match=r"IMG_1.jpg is a HEIC image.*pip install 'fungi_fastai\[heic\]'"):
            open_image(own_home / 'IMG_1.jpg')
        return
    image = np.asarray(open_image(own_home / 'IMG_1.jpg')).astype(int)
    assert image.shape == (64, 48, 3)
    assert image[5, 40, 1] < 60 and image[5, 5, 1] > 200 and image[60, 40, 1] > 200, 'red at the upper right'


def test_an_archive_beside_many_images_is_joined_in_linear_time():
    tree = Tree(Path('set'), files=[*((f'{i}.jpg',) for i in range(20_000)), ('b.zip',)])
    inner = Tree(Path('unpacked'), files=[('b', f'{i}.jpg') for i in range(20_000)])
    begin = time.monotonic()
    joined = archives._join_trees(tree, ('b.zip',), inner)
    assert len(joined.files) == 40_000 and time.monotonic() - begin < 5  # 0.03 s; 16 s with a set for each name


@pytest.mark.parametrize(
    'content,reason',
    [
        (b'\0\0\0\x1cftypmif1\0\0\0\0mif1heic', 'is a HEIC image'),
        (b'\0\0\0\x18ftypcrx \0\0\0\1', 'is a Canon RAW image (CR3)'),
        (b'\0\0\0\x14ftypqt  \0\0\0\0', 'is not an image but a video'),
        (b'<?xml version="1.0"?><svg/>', 'is not an image but an SVG drawing'),
        (b'<html><head><title>429 Too Many Requests</title>', 'is not an image but a web page (429 Too Many Requests)'),
        ('Leg. Müller, 3. Oktober'.encode('utf-16'), "is not an image but a text ('Leg. Müller, 3. Oktober')"),
        (b'/9j/4AAQSkZJRgABAQ', 'is not an image but a JPEG written as base64 text'),
        (b'\r\n' + small_jpeg(), 'has 2 stray bytes before the image'),
        (bytes(64), 'begins with zero bytes only'),
        (b'', 'is empty (0 bytes)'),
    ],
)
def test_the_reason_why_a_file_is_no_image(content, reason):
    if not ('HEIC' in reason and 'HEIF' in readable_formats()):
        assert unreadable_reason(content).startswith(reason)


def test_a_raw_file_is_not_read_as_the_preview_inside_it(own_home):
    Image.new('RGB', (16, 12)).save('thumbnail.tif', tiffinfo={50706: bytes([1, 4, 0, 0]), 254: 1})
    with pytest.raises(ImageError, match='is a RAW image of a camera'):
        open_image(own_home / 'thumbnail.tif')


def test_a_table_beside_an_archive_finds_the_images_in_it():
    pack('set/train_images.zip', *(f'{i}.jpg' for i in range(4)))
    Path('set/labels.csv').write_text(
        'path,label\n' + ''.join(f'train_images/{i}.jpg,{"ab"[i % 2]}\n' for i in range(4))
    )
    before = sorted(Path('set').iterdir())
    tree = archives.read_archives(archives.walk_tree('set'), progress=False)
    assert classes(tree.root / 'labels.csv')[0] == {'a': 2, 'b': 2}
    assert sorted(Path('set').iterdir()) == before, 'the folder itself is not changed'
    Path('set/labels.csv').write_text('path,label\ntrain_images/0.jpg,c\n')
    tree = archives.read_archives(archives.walk_tree('set'), progress=False)
    assert classes(tree.root / 'labels.csv')[0] == {'c': 1}


def test_a_table_does_not_find_images_of_another_archive():
    pack('photos.zip', '1.jpg', '2.jpg')
    Source.of('photos.zip').prepare()
    pack('labels.zip', 'other.jpg', extra=[('labels.csv', 'path,label\n1.jpg,a\n')])
    with pytest.raises(UserError, match='None of the .* exists'):
        Source.of(Source.of('labels.zip').prepare() / 'labels.csv').read()


def test_placeholders_of_icloud():
    for name in ('A/1.jpg', 'B/2.jpg', 'C/.IMG_3.HEIC.icloud'):
        Path('set', name).parent.mkdir(parents=True)
        Path('set', name).write_bytes(small_jpeg())
    found, notes = classes('set')
    assert found == {'A': 1, 'B': 1} and '1 image of which only a placeholder is on this computer' in notes
