"Image files as microscopes, scanners and image editors write them: one scene, of many kinds"

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms

_small = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
scene = np.array(Image.fromarray(_small).resize((80, 60), Image.Resampling.BICUBIC))
scene[0, :2] = [[0, 0, 0], [255, 255, 255]]  # its range is that of 8 bits
scene[:, 40] = np.linspace(0, 255, 60)[:, None].round()
grey = np.asarray(Image.fromarray(scene).convert('L'))
low, high = np.percentile(grey, (0.1, 99.9))
stretched = ((grey - low) * 255 / (high - low)).clip(0, 255)  # as 16-bit and float images are shown
deep, deep_grey = scene.astype(np.uint16), grey.astype(np.uint16)
opaque = np.broadcast_to(np.where(np.arange(80) < 30, 0, 255), (60, 80)).astype(np.uint16)  # 0: transparent
on_white = np.where(opaque[..., None] == 0, 255, scene)
sizes = {2: 1, 3: 2, 4: 4}  # bytes of a TIFF value: text, short, long


def saved(image, format, **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def tiff(pixels, photometric, order='<', planar=False, sample_format=1, deflate=False, **more):
    "A TIFF of one strip, or of one for each channel; `more`: tags by number, as `_274=6`"
    height, width, *rest = pixels.shape
    channels = rest[0] if rest else 1
    ordered = pixels.astype(pixels.dtype.newbyteorder(order))
    strips = [ordered[..., i].tobytes() for i in range(channels)] if planar else [ordered.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    tags = {256: width, 257: height, 258: [8 * pixels.itemsize] * channels, 259: 8 if deflate else 1, 262: photometric}
    tags |= {277: channels, 278: height, 284: 2 if planar else 1, 339: [sample_format] * channels}
    tags |= {279: [len(strip) for strip in strips], 273: [0] * len(strips)} | {int(k[1:]): v for k, v in more.items()}
    entries = []
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, (list, bytes)) else [value]
        entries.append((tag, 2 if isinstance(values, bytes) else 4 if tag in (273, 279) else 3, values))
    start = 14 + 12 * len(entries)
    at = start + sum(n for _, kind, values in entries if (n := len(values) * sizes[kind]) > 4)
    offsets = [at + sum(map(len, strips[:i])) for i in range(len(strips))]
    rows, blob = b'', b''
    for tag, kind, values in entries:
        values = offsets if tag == 273 else values
        raw = values if kind == 2 else struct.pack(f'{order}{len(values)}{"H" if kind == 3 else "I"}', *values)
        stored = raw.ljust(4, b'\0') if len(raw) <= 4 else struct.pack(f'{order}I', start + len(blob))
        blob += raw if len(raw) > 4 else b''
        rows += struct.pack(f'{order}HHI', tag, kind, len(values)) + stored
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(f'{order}IH', 8, len(entries))
    return head + rows + bytes(4) + blob + b''.join(strips)


def png(pixels, bits, kind, key=(), stated=()):
    "A PNG of any bit depth and colour type, with the colour that is transparent, and with further (name, data)"

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if bits < 8:
        shifted = rows.reshape(height, -1, 8 // bits) << np.arange(8 - bits, -1, -bits)
        rows = shifted.sum(2)
    lines = b''.join(b'\0' + row.astype('>u2' if bits == 16 else 'u1').tobytes() for row in rows)
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0))
    transparent = chunk(b'tRNS', struct.pack(f'>{len(key)}H', *key)) if key else b''
    header += b''.join(chunk(name, data) for name, data in stated)
    return b'\x89PNG\r\n\x1a\n' + header + transparent + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b'')


def profile(gamma=1.8, primaries=((0.7977, 0.2880, 0), (0.1352, 0.7119, 0), (0.0313, 0.0001, 0.8249))):
    "An ICC profile of RGB; by default ProPhoto"

    def fixed(*values):
        return b''.join(struct.pack('>i', round(value * 65536)) for value in values)

    curve = b'curv' + bytes(4) + struct.pack('>IH', 1, round(gamma * 256)) + bytes(2)
    text = b'desc' + bytes(4) + struct.pack('>I', 5) + b'wide\0' + bytes(78)
    white = b'XYZ ' + bytes(4) + fixed(0.9642, 1, 0.8249)
    tags = {b'desc': text, b'cprt': b'text' + bytes(4) + b'none\0', b'wtpt': white}
    for name, colour in zip(b'rgb', primaries, strict=True):
        tags |= {bytes([name]) + b'XYZ': b'XYZ ' + bytes(4) + fixed(*colour), bytes([name]) + b'TRC': curve}
    table, body = b'', b''
    for name, data in tags.items():
        table += name + struct.pack('>II', 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    length = 132 + len(table) + len(body)
    date = struct.pack('>6H', 2020, 1, 1, 0, 0, 0)
    head = struct.pack('>I4sI', length, b'none', 2**25 + 2**20) + b'mntrRGB XYZ ' + date + b'acsp' + bytes(28)
    return head + fixed(0.9642, 1, 0.8249) + bytes(48) + struct.pack('>I', len(tags)) + table + body


def in_profile(icc):
    "The scene in the colours of a profile"
    source, target = ImageCms.createProfile('sRGB'), ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return ImageCms.profileToProfile(Image.fromarray(scene), source, target)


turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF orientation → Pillow's transposition that undoes it


def turned(pixels, orientation):
    "The pixels as a camera stores them that was held in this way"
    return np.asarray(Image.fromarray(pixels).transpose(Image.Transpose(turns[orientation])))
