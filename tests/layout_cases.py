"""Small sources and what is read from each: `test_layouts.py` checks them, and the page "What a source may look like"
shows them"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Case:
    "A small folder or table, and what is read from it"

    title: str  # one line, for the page
    images: tuple[str, ...]  # paths of images; `5 Amanita/#.jpg` stands for five, with the numbers 0 to 4 for `#`
    texts: dict[str, str] = field(default_factory=dict)  # other files: path → content
    source: str = '.'  # what is read: the folder, or a table in it
    options: dict[str, str] = field(default_factory=dict)  # of `Source.of`: label, group, column, layout
    classes: dict[str, int] = field(default_factory=dict)  # expected: class → images
    unlabelled: int = 0  # expected: images without a label
    splits: dict[str, int] = field(default_factory=dict)  # expected: given split → images
    groups: int = 0  # expected: specimens
    notes: tuple[str, ...] = ()  # expected: a text that a note contains, each
    refused: tuple[str, ...] = ()  # expected instead of all that: texts that the error contains
    topic: str = 'folders'  # the heading on the page: folders, splits, specimens, names, tables

    def write(self, folder: Path, draw):  # draw: a function of a path, which writes an image there
        "Write the files of the case below a folder"
        for name in self.image_names():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(path)
        for name, text in self.texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding='utf8')

    def image_names(self) -> Iterator[str]:
        "The path of each image"
        for text in self.images:
            number, _, name = text.partition(' ') if text[0].isdigit() and '#' in text else ('1', '', text)
            yield from (name.replace('#', str(i)) for i in range(int(number)))


folder_cases = [
    Case('A folder for each class', ('4 Amanita/#.jpg', '3 Boletus/#.jpg'), classes={'Amanita': 4, 'Boletus': 3}),
    Case(
        'Folders around all classes are ignored; a loose image has no label',
        ('2 download/Fungi 2024/Amanita/#.jpg', '2 download/Fungi 2024/Boletus/#.jpg', 'download/cover.jpg'),
        classes={'Amanita': 2, 'Boletus': 2},
        unlabelled=1,
    ),
    Case(
        'Order, family and species: the innermost folder is the class',
        (
            '3 Agaricales/Amanitaceae/muscaria/#.jpg',
            '3 Agaricales/Agaricaceae/campestris/#.jpg',
            '3 Boletales/Boletaceae/edulis/#.jpg',
        ),
        classes={'muscaria': 3, 'campestris': 3, 'edulis': 3},
        notes=('innermost folder is the class',),
    ),
    Case(
        'One epithet in two genera is refused',
        ('3 Cortinarius/violaceus/#.jpg', '3 Tricholoma/sejunctum/#.jpg', '2 Clavaria/violaceus/#.jpg'),
        refused=('Clavaria/violaceus/', '--layout class/class', "--layout '*/class'", '--layout class:'),
    ),
    Case(
        '… until you say that genus and species make the name',
        ('3 Cortinarius/violaceus/#.jpg', '3 Tricholoma/sejunctum/#.jpg', '2 Clavaria/violaceus/#.jpg'),
        options=dict(layout='class/class'),
        classes={'Cortinarius violaceus': 3, 'Tricholoma sejunctum': 3, 'Clavaria violaceus': 2},
    ),
    Case(
        'Classes at different depths are refused',
        ('3 Agaricus/#.jpg', '3 Amanita/red/#.jpg', '3 Amanita/white/#.jpg'),
        refused=('Agaricus/ holds images', 'red, white', '--layout class', "'**/class'"),
    ),
    Case(
        'A folder inside a class belongs to the class',
        ('4 Suillus/#.jpg', '3 Suillus/after the rain/#.jpg', '4 Xerula/#.jpg'),
        classes={'Suillus': 7, 'Xerula': 4},
        notes=('Suillus/after the rain/',),
    ),
    Case(
        'Folders for the images inside each class say nothing',
        ('3 train/wasp/JPEGImages/#.jpg', '3 train/bee/JPEGImages/#.jpg', '2 val/bee/JPEGImages/#.jpg'),
        classes={'wasp': 3, 'bee': 5},
        splits={'train': 6, 'valid': 2},
        topic='splits',
    ),
    Case(
        'Previews of a network drive and of a photo manager are left out',
        (
            '3 Lepiota/#.jpg',
            'Lepiota/@eaDir/0.jpg/SYNOFILE_THUMB_S.jpg',
            '3 Lepiota/thumbnails/#.jpg',
            '2 Panus/#.jpg',
            '4 $RECYCLE.BIN/old/#.jpg',
        ),
        classes={'Lepiota': 3, 'Panus': 2},
        notes=('$RECYCLE.BIN (4), @eaDir (1)', 'Lepiota/thumbnails/ (3)'),
    ),
    Case(
        'Masks beside the photos are left out, in folders or by name',
        ('3 polyp/img/#.jpg', '3 polyp/mask/#.png', '2 normal/img/#.jpg', '2 normal/img/#_mask.png'),
        classes={'polyp': 3, 'normal': 2},
        notes=('5 images that are masks',),
    ),
    Case(
        'Classes that are called like masks stay classes',
        ('3 with mask/#.jpg', '3 without mask/#.jpg'),
        classes={'with mask': 3, 'without mask': 3},
    ),
    Case(
        'An empty folder, and one with other files, are named',
        ('3 Mycena/#.jpg', '3 Panus/#.jpg'),
        {'Xerula/list.docx': '?'},
        classes={'Mycena': 3, 'Panus': 3},
        notes=('Xerula (1 .docx)',),
    ),
    Case(
        'The same classes in colour and in grey are refused',
        ('2 colour/oak/#.jpg', '2 colour/elm/#.jpg', '2 grey/oak/#.jpg', '2 grey/elm/#.jpg'),
        refused=('colour/elm/ and grey/elm/', "'*/class'"),
    ),
    Case(
        'Splits around the classes, under any of their usual names',
        ('3 Training Set/A/#.jpg', '3 Training Set/B/#.jpg', '2 dev/A/#.jpg', '2 hold-out/B/#.jpg'),
        classes={'A': 5, 'B': 5},
        splits={'train': 6, 'valid': 2, 'test': 2},
        notes=('dev/ (valid)', 'hold-out/ (test)'),
        topic='splits',
    ),
    Case(
        'Splits inside each class',
        ('3 elm/train/#.jpg', '2 elm/test/#.jpg', '3 oak/train/#.jpg', '2 oak/test/#.jpg', '2 ash/train/#.jpg'),
        classes={'elm': 5, 'oak': 5, 'ash': 2},
        splits={'train': 8, 'test': 4},
        topic='splits',
    ),
    Case(
        'A folder of images to predict, and one for a poster, have no label',
        (
            '3 seg_train/seg_train/sea/#.jpg',
            '2 seg_test/seg_test/sea/#.jpg',
            '3 seg_train/seg_train/ice/#.jpg',
            '4 seg_pred/seg_pred/#.jpg',
            '2 poster/#.jpg',
        ),
        classes={'sea': 5, 'ice': 3},
        unlabelled=6,
        splits={'train': 6, 'test': 2},
        notes=('poster/',),
        topic='splits',
    ),
    Case(
        'What may be a further split is refused',
        ('3 train/sea/#.jpg', '3 train/ice/#.jpg', '2 test/sea/#.jpg', '2 bonus/sea/#.jpg'),
        refused=('bonus/ stands beside the splits',),
        topic='splits',
    ),
    Case(
        'A word for a split that is not understood is refused',
        ('3 train/sea/#.jpg', '3 train/ice/#.jpg', '2 test_hard/sea/#.jpg'),
        refused=('test_hard', 'train, valid or test'),
        topic='splits',
    ),
    Case(
        'A validation set without class folders has no labels',
        ('3 train/n01/images/#.jpg', '3 train/n02/images/#.jpg', '4 val/images/#.jpg'),
        classes={'n01': 3, 'n02': 3},
        unlabelled=4,
        splits={'train': 6, 'valid': 4},
        notes=('val/images/ have no label',),
        topic='splits',
    ),
    Case(
        'A class called train is a class',
        ('3 train/#.jpg', '3 tram/#.jpg', '2 bus/#.jpg'),
        classes={'train': 3, 'tram': 3, 'bus': 2},
        topic='splits',
    ),
    Case(
        'A folder called test beside classes is refused: its images must not be trained on',
        ('3 oak/#.jpg', '3 elm/#.jpg', '2 test/#.jpg'),
        refused=('test/ may be a split or a class', '--layout class: 3 classes'),
        topic='splits',
    ),
    Case(
        'A class called train, inside given splits',
        ('3 train/train/#.jpg', '3 train/bus/#.jpg', '2 test/train/#.jpg'),
        classes={'train': 5, 'bus': 3},
        splits={'train': 6, 'test': 2},
        topic='splits',
    ),
    Case(
        'A folder for each specimen inside the classes',
        ('2 Inocybe/specimen 1/#.jpg', '2 Inocybe/specimen 2/#.jpg', '2 Galerina/specimen 1/#.jpg', '1 Galerina/#.jpg'),
        classes={'Inocybe': 4, 'Galerina': 3},
        groups=4,
        notes=('class/specimen',),
        topic='specimens',
    ),
    Case(
        'Days of collection, inside given splits',
        ('2 train/Inocybe/2023-10-01/#.jpg', '2 train/Galerina/2023-10-02/#.jpg', '2 test/Galerina/2024-09-30/#.jpg'),
        classes={'Inocybe': 2, 'Galerina': 4},
        splits={'train': 4, 'test': 2},
        groups=3,
        notes=('split/class/specimen',),
        topic='specimens',
    ),
    Case(
        'Numbers may be specimens or classes, and are refused',
        ('2 Plantae/5021/#.jpg', '2 Plantae/5022/#.jpg', '2 Fungi/7113/#.jpg'),
        refused=('--layout class/specimen: 2 classes (Fungi, Plantae)', "--layout '*/class': 3 classes"),
        topic='specimens',
    ),
    Case(
        'So are the numbers of a herbarium',
        ('2 Inocybe/STU-F-0017/#.jpg', '2 Inocybe/STU-F-0018/#.jpg', '2 Galerina/STU-F-0923/#.jpg'),
        refused=('--layout class/specimen: 2 classes (Galerina, Inocybe)',),
        topic='specimens',
    ),
    Case(
        '… until you choose',
        ('2 Plantae/5021/#.jpg', '2 Plantae/5022/#.jpg', '2 Fungi/7113/#.jpg'),
        options=dict(layout='*/class'),
        classes={'5021': 2, '5022': 2, '7113': 2},
        topic='specimens',
    ),
    Case(
        'Spellings that differ in case, blanks or Unicode form are one class',
        ('3 Amanita rubescens/#.jpg', '2 amanita  rubescens/#.jpg', '2 Ro\u0308hrling/#.jpg', '1 R\u00f6hrling/a#.jpg'),
        classes={'Amanita rubescens': 5, 'R\u00f6hrling': 3},
        notes=("'Amanita rubescens' (3) and 'amanita  rubescens' (2)",),
        topic='names',
    ),
    Case(
        'A likely typing error is named, but not merged',
        ('8 Amanita rubescens/#.jpg', '2 Amanita rubecsens/#.jpg', '4 Panus/#.jpg'),
        classes={'Amanita rubescens': 8, 'Amanita rubecsens': 2, 'Panus': 4},
        notes=("'Amanita rubecsens' (2) and 'Amanita rubescens' (8)",),
        topic='names',
    ),
    Case(
        'A folder of images and a table in it',
        ('4 photos/#.jpg', '2 test_photos/9#.jpg'),
        {'train.csv': 'path,label\n' + ''.join(f'photos/{i}.jpg,{"ab"[i % 2]}\n' for i in range(4))},
        classes={'a': 2, 'b': 2},
        unlabelled=2,
        splits={'test': 2},
        notes=('train.csv',),
        topic='tables',
    ),
    Case(
        'Names with numbers in one folder: the error says which pattern finds the class',
        ('3 oak_#.jpg', '3 elm_#.jpg'),
        refused=('no folders to take labels from', "--label '", 'gives 2 classes (elm, oak)'),
    ),
    Case(
        'Masks in a folder of annotations',
        (
            '2 images/oak_#.jpg',
            '2 images/elm_#.jpg',
            '2 annotations/trimaps/oak_#.png',
            '2 annotations/trimaps/elm_#.png',
        ),
        {'annotations/list.txt': 'oak_0 1\n', 'annotations/test.txt': 'oak_1 1\nelm_1 2\n'},
        options=dict(label='(.+)_'),
        classes={'oak': 2, 'elm': 2},
        splits={'test': 2},
        notes=('4 images that are masks or previews', 'From annotations/test.txt: the split'),
    ),
    Case(
        'A list of the labels of a validation set that has no class folders',
        ('3 train/n7/images/#.jpg', '3 train/n9/images/#.jpg', '4 val/images/v#.jpg'),
        {'val/annotations_of_val.txt': ''.join(f'v{i}.jpg\tn{(7, 9)[i % 2]}\t0\t{i}\n' for i in range(4))},
        classes={'n7': 5, 'n9': 5},
        splits={'train': 6, 'valid': 4},
        notes=('From val/annotations_of_val.txt: the labels of 4 images',),
        topic='splits',
    ),
    Case(
        'Several lists for each split are not used',
        ('3 a/#.jpg', '3 b/#.jpg'),
        {f'train{i}.txt': f'a/{i}.jpg\nb/{i}.jpg\n' for i in range(2)} | {'test0.txt': 'a/2.jpg\n'},
        classes={'a': 3, 'b': 3},
        notes=('Lists of images that are not used: test0.txt, train0.txt, train1.txt',),
        topic='splits',
    ),
    Case(
        'Splits in another language, and a class that only the test set has',
        ('3 訓練/oak/#.jpg', '3 訓練/elm/#.jpg', '2 テスト/oak/#.jpg', '2 テスト/ash/#.jpg'),
        classes={'oak': 5, 'elm': 3, 'ash': 2},
        splits={'train': 6, 'test': 4},
        notes=('no training image of 1 class (ash)',),
        topic='splits',
    ),
    Case(
        'Numbers with zeros before them, and their names after a colon',
        ('3 class_00/a#.jpg', '3 class_01/b#.jpg'),
        {'classes.txt': '0: Oak\n1: Elm\n2: Ash\n'},
        classes={'Oak': 3, 'Elm': 3},
        notes=('their names are read from classes.txt',),
        topic='names',
    ),
    Case(
        'The names in the data.yaml of YOLO',
        ('3 train/0/a#.jpg', '3 train/1/b#.jpg', '2 val/1/c#.jpg'),
        {'data.yaml': 'nc: 2\nnames: [Oak, Elm]\n'},
        classes={'Oak': 3, 'Elm': 5},
        splits={'train': 6, 'valid': 2},
        topic='names',
    ),
    Case(
        'Backups of programs, unfinished downloads and images of a microscope are named',
        ('3 oak/#.jpg', '3 elm/#.jpg'),
        {
            'oak/0.jpg_original': '?',
            'oak/9.jpg.crdownload': '?',
            'elm/8.czi': '?',
            'elm/~$trees.xlsx': '?',
            'elm/Previews.lrdata/7.jpg': '?',
        },
        classes={'oak': 3, 'elm': 3},
        notes=('1 backup', '9.jpg.crdownload', '(1 .czi)', 'Previews.lrdata (1)'),
    ),
    Case(
        'Charts, logs and documents beside the class folders are left out',
        (
            '3 Amanita/#.jpg',
            '3 Boletus/#.jpg',
            'outputs/roc_curve.png',
            'outputs/run 2/loss.png',
            'docs/title page.png',
        ),
        {'docs/manual.md': '?'},
        classes={'Amanita': 3, 'Boletus': 3},
        notes=('folders for charts, logs and documents: docs/ (1), outputs/ (2)',),
    ),
    Case(
        'A folder that may hold charts or be a class is refused',
        ('2 figures/scan_#.jpg', '2 maps/scan_#.jpg', '2 letters/scan_#.jpg'),
        refused=('figures/', 'charts or documents', '--layout class'),
    ),
    Case(
        'Previews by their size or the start of their name',
        ('3 Panus/p#.jpg', '3 Panus/p#-320x240.jpg', '2 Xerula/x#.jpg', '2 Xerula/tn_x#.jpg'),
        classes={'Panus': 3, 'Xerula': 2},
        notes=('5 images that are masks or previews',),
    ),
    Case(
        'Images to be sorted, and a name that may not be a class',
        ('3 Panus/#.jpg', '3 Xerula/#.jpg', '2 unlabelled/#.jpg', '2 to sort/#.jpg'),
        classes={'Panus': 3, 'Xerula': 3, 'to sort': 2},
        unlabelled=2,
        notes=('The images in unlabelled/ have no label', 'The label to sort (2 images)'),
        topic='names',
    ),
    Case(
        'Days, specimens and the folders of a camera are no classes',
        ('2 2025-09-13/#.jpg', '2 2025-09-14/#.jpg'),
        refused=('no folders to take labels from', 'If the folders 2025-09-13, 2025-09-14 are classes'),
        topic='specimens',
    ),
    Case(
        'Batches of photos with the class inside',
        ('2 101NIKON/Panus/#.jpg', '2 102NIKON/Panus/b#.jpg', '3 102NIKON/Xerula/#.jpg'),
        classes={'Panus': 4, 'Xerula': 3},
        notes=('101NIKON/, 102NIKON/ are neither classes nor specimens',),
    ),
    Case(
        'The name of the class may stand in its splits',
        ('3 oak/oak_train/#.jpg', '2 oak/oak_test/#.jpg', '3 elm/elm_train/#.jpg', '2 elm/elm_test/#.jpg'),
        classes={'oak': 5, 'elm': 5},
        splits={'train': 6, 'test': 4},
        topic='splits',
    ),
    Case(
        'A folder for two splits',
        ('3 train_val/train/oak/#.jpg', '2 train_val/val/elm/#.jpg', '2 test/oak/#.jpg', '3 train_val/train/elm/#.jpg'),
        classes={'oak': 5, 'elm': 5},
        splits={'train': 6, 'valid': 2, 'test': 2},
        notes=('train_val/ holds two splits',),
        topic='splits',
    ),
    Case(
        'A folder in one class that is named like another is refused',
        ('3 oak/#.jpg', '3 elm/#.jpg', '2 elm/oak/#.jpg'),
        refused=('elm/oak/ stands in one class and is named like another',),
    ),
    Case(
        'Videos, shortcuts and arrays are named',
        ('3 oak/IMG_#.jpg', '3 elm/#.jpg'),
        {'oak/IMG_0.MOV': '?', 'elm/more elms.lnk': '?', 'elm/features.npz': '?'},
        classes={'oak': 3, 'elm': 3},
        notes=('1 video (1 .mov)', '1 shortcut (1 .lnk)', '1 file of arrays'),
    ),
    Case(
        'A probability after each name, and the names of downloads from Teachable Machine',
        ('2 oak-samples (0.91)/#.jpg', '2 elm-samples (0.88)/#.jpg'),
        classes={'oak': 2, 'elm': 2},
        notes=('All labels end with a probability', 'All labels end with -samples'),
        topic='names',
    ),
    Case(
        'Letters that another program has spoiled',
        ('2 Röhrling/#.jpg', '2 RÃ¶hrling/b#.jpg', '2 R├╢hrling/c#.jpg', '2 Täubling/#.jpg'),
        classes={'Röhrling': 6, 'Täubling': 2},
        notes=('Röhrling for RÃ¶hrling', 'are repaired'),
        topic='names',
    ),
    Case(
        'Classes that may be parts of a class',
        ('2 oak_1/#.jpg', '2 oak_2/#.jpg', '2 elm_1/#.jpg'),
        classes={'oak_1': 2, 'oak_2': 2, 'elm_1': 2},
        notes=('differ only in their number: oak_1, oak_2',),
        topic='names',
    ),
]


def table(header: str, *rows: str) -> str:
    "The text of a table"
    return ''.join(f'{line}\n' for line in (header, *rows))


def labelled(number: int, line: str = '{i}.jpg,{label}') -> list[str]:
    "Rows of a table, with the labels oak and elm in turn"
    return [line.format(i=i, half=i // 2, label=('oak', 'elm')[i % 2]) for i in range(number)]


two_classes = {'oak': 3, 'elm': 3}
table_cases = [
    Case(
        'A table with paths and labels',
        ('6 #.jpg',),
        {'labels.csv': table('path,label', *labelled(6))},
        'labels.csv',
        classes=two_classes,
        topic='tables',
    ),
    Case(
        'A German spreadsheet: semicolons, decimal commas, a comma in the header',
        ('6 #.jpg',),
        {'bäume.csv': table('sep=;', 'Datei;Art;Höhe, m', *labelled(6, '{i}.jpg;{label};1{i},5'))},
        'bäume.csv',
        classes=two_classes,
        notes=('separated by semicolons',),
        topic='tables',
    ),
    Case(
        'Ranks of GBIF or of the Danish Fungi: the species is the label, the observation is the specimen',
        ('6 media/#.jpg',),
        {
            'occurrences.csv': table(
                'occurrenceID,kingdom,class,order,genus,species,image_path',
                *[
                    f'urn:{i // 2},Fungi,Agaricomycetes,Boletales,Suillus,Suillus {"ab"[i // 4]},{i}.jpg'
                    for i in range(6)
                ],
            )
        },
        'occurrences.csv',
        classes={'Suillus a': 4, 'Suillus b': 2},
        groups=3,
        notes=('class is a taxonomic rank', 'specimens from occurrenceID'),
        topic='tables',
    ),
    Case(
        'A Darwin Core archive: photos in one file, species in another',
        ('4 photos/#.jpg',),
        {
            'multimedia.txt': table(
                'gbifID\tidentifier', *[f'{i // 2}\thttps://example.org/{i}.jpg' for i in range(4)]
            ),
            'occurrence.txt': table('gbifID\tclass\tfamily\torder\tspecies', '0\tA\tB\tC\toak', '1\tA\tB\tC\telm'),
        },
        'multimedia.txt',
        classes={'oak': 2, 'elm': 2},
        groups=2,
        notes=('joined with occurrence.txt by the column gbifID',),
        topic='tables',
    ),
    Case(
        'Names without an extension, in several folders, and a specimen for each lesion',
        ('3 lesions_1/S#.jpg', 'lesions_2/S3.jpg', 'lesions_2/S4.jpg', 'lesions_2/S5.jpg'),
        {'metadata.csv': table('lesion_id,image_id,dx', *labelled(6, 'lesion {label},S{i},{label}'))},
        'metadata.csv',
        classes=two_classes,
        groups=2,
        notes=('no extension, such as S0.jpg', 'specimens from lesion_id'),
        topic='tables',
    ),
    Case(
        'Numbers for the classes, and a file with their names',
        ('6 train_images/#.jpg', 'test_images/9.jpg'),
        {
            'train.csv': table('image_id,label', *[f'{i}.jpg,{i % 2}' for i in range(6)]),
            'label_num_to_tree_map.json': '{"0": "oak", "1": "elm", "2": "ash"}',
            'sample_submission.csv': table('image_id,label', '9.jpg,0'),
        },
        classes=two_classes,
        unlabelled=1,
        splits={'train': 6, 'test': 1},
        notes=('names are read from label_num_to_tree_map.json',),
        topic='tables',
    ),
    Case(
        'A column of 0 and 1 for each class',
        ('4 images/#.jpg',),
        {'train.csv': table('image_id,healthy,rust,scab', '0,1,0,0', '1,0,1,0', '2,0,0,1', '3,0,1,0')},
        'train.csv',
        classes={'healthy': 1, 'rust': 2, 'scab': 1},
        notes=('labels from healthy, rust, scab',),
        topic='tables',
    ),
    Case(
        '… with two of them in one row is refused',
        ('2 #.jpg',),
        {'train.csv': table('image,rust,scab', '0,1,0', '1,1,1')},
        'train.csv',
        refused=('more than one label in the columns rust, scab (line 3)', '--label'),
        topic='tables',
    ),
    Case(
        'The metadata of a Hugging Face data set, one for each split',
        ('3 train/#.png', '2 test/#.png'),
        {
            'train/metadata.jsonl': ''.join(
                f'{{"file_name": "{i}.png", "label": "{"ab"[i % 2]}"}}\n' for i in range(3)
            ),
            'test/metadata.jsonl': '{"file_name": "0.png", "label": "a"}\n{"file_name": "1.png", "label": "b"}\n',
        },
        classes={'a': 3, 'b': 2},
        splits={'train': 3, 'test': 2},
        topic='tables',
    ),
    Case(
        'The annotations of COCO, iNaturalist and camera traps',
        ('4 trap/#.jpg',),
        {
            'annotations.json': '{"images": ['
            + ', '.join(f'{{"id": {i}, "file_name": "{i}.jpg"}}' for i in range(4))
            + '], "annotations": ['
            + ', '.join(f'{{"image_id": {i}, "category_id": {i % 2}}}' for i in range(4))
            + '], "categories": [{"id": 0, "name": "fox"}, {"id": 1, "name": "owl"}]}'
        },
        'annotations.json',
        classes={'fox': 2, 'owl': 2},
        topic='tables',
    ),
    Case(
        'Lists of numbers as in CUB-200: folders, names and split belong together',
        ('2 images/1.Wren/#.jpg', '2 images/2.Kite/#.jpg'),
        {
            'images.txt': '1 1.Wren/0.jpg\n2 1.Wren/1.jpg\n3 2.Kite/0.jpg\n4 2.Kite/1.jpg\n',
            'image_class_labels.txt': '1 1\n2 1\n3 2\n4 2\n',
            'classes.txt': '1 1.Wren\n2 2.Kite\n',
            'train_test_split.txt': '1 1\n2 0\n3 1\n4 0\n',
        },
        classes={'1.Wren': 2, '2.Kite': 2},
        splits={'train': 2, 'test': 2},
        notes=('From images.txt: the split',),
        topic='tables',
    ),
    Case(
        'Folders that are no classes, and a table with other labels, are refused',
        ('2 batch/#.jpg', '2 batch 2/#.jpg'),
        {
            'trees.csv': table(
                'file,species', 'batch/0.jpg,oak', 'batch/1.jpg,elm', 'batch 2/0.jpg,oak', 'batch 2/1.jpg,oak'
            )
        },
        refused=('two ways', 'trees.csv', '--layout class'),
        topic='tables',
    ),
    Case(
        'Predictions that were written into the folder are no labels',
        ('2 oak/#.jpg', '2 elm/#.jpg'),
        {
            'predictions.csv': table(
                'path,name,predicted,confidence,answer,set,p_elm,p_oak,error',
                'oak/0.jpg,0.jpg,oak,0.9,oak,oak,0.1,0.9,',
                'oak/1.jpg,1.jpg,elm,0.6,not sure,elm | oak,0.6,0.4,',
                'elm/0.jpg,0.jpg,elm,0.8,elm,elm,0.8,0.2,',
                'elm/1.jpg,1.jpg,oak,0.7,oak,oak | elm,0.3,0.7,',
            )
        },
        classes={'oak': 2, 'elm': 2},
        notes=('not from the tables in them (predictions.csv)',),
        topic='tables',
    ),
    Case(
        'The folder in one column, the file in another',
        ('2 north/#.jpg', '2 south/#.jpg'),
        {
            'trees.csv': table(
                'site,file,species', 'north,0.jpg,oak', 'north,1.jpg,elm', 'south,0.jpg,elm', 'south,1.jpg,oak'
            )
        },
        'trees.csv',
        classes={'oak': 2, 'elm': 2},
        notes=('images from site/file',),
        topic='tables',
    ),
    Case(
        'A name that is in two folders is refused',
        ('2 north/#.jpg', '2 south/#.jpg'),
        {'trees.csv': table('file,species', '0.jpg,oak', '1.jpg,elm')},
        'trees.csv',
        refused=('more than one folder', '0.jpg is in', 'move the table'),
        topic='tables',
    ),
    Case(
        'Paths of a Windows computer',
        ('3 scans/a/#.jpg', '3 scans/b/#.jpg'),
        {'t.csv': table('path;label', *[f'D:\\me\\scans\\{"ab"[i // 3]}\\{i % 3}.jpg;{i % 2}' for i in range(6)])},
        't.csv',
        classes={'0': 3, '1': 3},
        notes=('begin with D:/me',),
        topic='tables',
    ),
    Case(
        'Unquoted commas in the label',
        ('4 #.jpg',),
        {'t.csv': table('species,path,part', *[f'Inocybe, sect. {"AB"[i % 2]},{i}.jpg,cap' for i in range(4)])},
        't.csv',
        classes={'Inocybe, sect. A': 2, 'Inocybe, sect. B': 2},
        notes=('in the column species but without quotation marks (lines 2, 3, 4, 5)',),
        topic='tables',
    ),
    Case(
        'A row that can be read in two ways is refused',
        ('2 #.jpg',),
        {'t.csv': table('path,species,finder', '0.jpg,oak,Ann', '1.jpg,elm,Ben,Coe')},
        't.csv',
        refused=('more than the 3 cells of the header: line 3', 'quotation marks'),
        topic='tables',
    ),
    Case(
        'Specimens that are NA: each image counts by itself',
        ('6 #.jpg',),
        {'t.csv': table('path,label,specimen', *labelled(4, '{i}.jpg,{label},NA'), '4.jpg,oak,s1', '5.jpg,oak,s1')},
        't.csv',
        classes={'oak': 4, 'elm': 2},
        groups=5,
        notes=('4 of 6 rows have no specimen in specimen (NA)',),
        topic='tables',
    ),
    Case(
        'A column of questions, such as is_valid of fastai',
        ('6 #.jpg',),
        {
            't.csv': table(
                'name,label,is_valid', *labelled(4, '{i}.jpg,{label},False'), *labelled(6, '{i}.jpg,{label},True')[4:]
            )
        },
        't.csv',
        classes=two_classes,
        splits={'train': 4, 'valid': 2},
        notes=('split from is_valid',),
        topic='tables',
    ),
    Case(
        'Other words for a split',
        ('6 #.jpg',),
        {
            't.csv': table(
                'Bild;Art;Datensatz', *labelled(4, '{i}.jpg;{label};Training'), '4.jpg;oak;dev', '5.jpg;elm;Hold-out'
            )
        },
        't.csv',
        classes=two_classes,
        splits={'train': 4, 'valid': 1, 'test': 1},
        topic='tables',
    ),
    Case(
        'A word for a split that is not understood is refused',
        ('4 #.jpg',),
        {'t.csv': table('path,label,partition', '0.jpg,a,train', '1.jpg,b,train', '2.jpg,a,gold', '3.jpg,b,gold')},
        't.csv',
        refused=("'gold' (lines 4, 5)", '--split none'),
        topic='tables',
    ),
    Case(
        '… unless the column is ignored',
        ('4 #.jpg',),
        {'t.csv': table('path,label,partition', '0.jpg,a,train', '1.jpg,b,train', '2.jpg,a,gold', '3.jpg,b,gold')},
        't.csv',
        options=dict(split='none'),
        classes={'a': 2, 'b': 2},
        topic='tables',
    ),
    Case(
        'Folds of a cross-validation are no test set',
        ('6 #.jpg',),
        {'t.csv': table('path,label,fold', *labelled(6, '{i}.jpg,{label},{half}'))},
        't.csv',
        classes=two_classes,
        notes=('fold numbers the folds of a cross-validation; it is not used',),
        topic='tables',
    ),
    Case(
        'Lists of the images of each split, as in Food-101, beside class folders',
        ('4 leaves/Oak/o#.jpg', '4 leaves/Elm/e#.jpg'),
        {
            'meta/train.txt': 'Oak/o0\nOak/o1\nOak/o2\nElm/e0\nElm/e1\nElm/e2\n',
            'meta/test.txt': 'Oak/o3\nElm/e3\n',
        },
        classes={'Oak': 4, 'Elm': 4},
        splits={'train': 6, 'test': 2},
        notes=('From meta/test.txt and meta/train.txt: the split',),
        topic='tables',
    ),
    Case(
        'Lists with labels, without a header and without extensions, as of FGVC-Aircraft',
        ('4 photos/10#.jpg',),
        {'names_train.txt': '100 Boletus edulis\n101 Suillus\n', 'names_test.txt': '102 Boletus edulis\n103 Suillus\n'},
        classes={'Boletus edulis': 2, 'Suillus': 2},
        splits={'train': 2, 'test': 2},
        topic='tables',
    ),
    Case(
        'A list of test images alone',
        ('4 leaves/Oak/o#.jpg', '4 leaves/Elm/e#.jpg'),
        {'held_out_test.txt': 'leaves/Oak/o3.jpg\nleaves/Elm/e3.jpg\n'},
        classes={'Oak': 4, 'Elm': 4},
        splits={'test': 2},
        topic='tables',
    ),
    Case(
        'The tables of a competition: one of the test images, without labels',
        ('4 train/#.jpg', '2 test/1#.jpg'),
        {'train.csv': table('id,target', '0,oak', '1,elm', '2,oak', '3,elm'), 'test.csv': table('id', '10', '11')},
        classes={'oak': 2, 'elm': 2},
        unlabelled=2,
        splits={'train': 4, 'test': 2},
        notes=('The tables test.csv, train.csv are those of the splits',),
        topic='tables',
    ),
    Case(
        'Folders of numbers whose names a file has',
        ('2 train/3/#.jpg', '2 train/12/#.jpg', '1 valid/12/v#.jpg'),
        {'number_to_name.json': '{"3": "Oak", "12": "Elm", "13": "Yew"}'},
        classes={'Oak': 2, 'Elm': 3},
        splits={'train': 4, 'valid': 1},
        notes=('their names are read from number_to_name.json. To keep the numbers, choose the layout',),
        topic='tables',
    ),
    Case(
        'A folder of COCO or iNaturalist for each split, with classes that are numbers',
        ('2 trees/0/a#.jpg', '2 trees/1/b#.jpg'),
        {
            f'{split}2026.json': json.dumps(
                dict(
                    images=[dict(id=c, file_name=f'trees/{c}/{"ab"[c]}{i}.jpg') for c in (0, 1)],
                    annotations=[dict(image_id=c, category_id=c) for c in (0, 1)],
                    categories=[dict(id=0, name='Oak'), dict(id=1, name='Elm')],
                )
            )
            for i, split in enumerate(('train', 'val'))
        },
        classes={'Oak': 2, 'Elm': 2},
        splits={'train': 2, 'valid': 2},
        notes=('the split and the names of the classes',),
        topic='tables',
    ),
    Case(
        'One folder of images is no class where a table has several',
        ('4 photos of 2026/#.jpg',),
        {'finds.csv': table('photo,species', '0.jpg,oak', '1.jpg,elm', '2.jpg,oak', '3.jpg,elm')},
        classes={'oak': 2, 'elm': 2},
        notes=('Labels are read from the table finds.csv',),
        topic='tables',
    ),
    Case(
        'Numbers and names of the classes in two columns',
        ('4 #.jpg',),
        {
            't.csv': table(
                'path,label,name of the tree', *[f'{i}.jpg,{i % 2},{("oak", "elm")[i % 2]}' for i in range(4)]
            )
        },
        't.csv',
        classes={'oak': 2, 'elm': 2},
        notes=('The labels in label are numbers; their names are read from the column name of the tree',),
        topic='tables',
    ),
    Case(
        'One epithet in two genera',
        ('4 #.jpg',),
        {
            't.csv': table(
                'file,Genus,species', '0.jpg,Acer,alba', '1.jpg,Salix,alba', '2.jpg,Acer,rubrum', '3.jpg,Salix,'
            )
        },
        't.csv',
        classes={'Acer alba': 1, 'Acer rubrum': 1, 'Salix alba': 1},
        unlabelled=1,
        notes=('labels from Genus and species',),
        topic='tables',
    ),
    Case(
        'A column of things that are numbered holds specimens',
        ('6 #.jpg',),
        {
            't.csv': table(
                'path,label,tree', *[f'{i}.jpg,{("oak", "elm")[i // 3]},T{i // 3}{i % 3 // 2}' for i in range(6)]
            )
        },
        't.csv',
        classes=two_classes,
        groups=4,
        notes=('specimens from tree',),
        topic='tables',
    ),
    Case(
        'A question in other words',
        ('6 #.jpg',),
        {
            't.csv': table(
                'name,label,use_for_testing', *labelled(4, '{i}.jpg,{label},no'), '4.jpg,oak,yes', '5.jpg,elm,yes'
            )
        },
        't.csv',
        classes=two_classes,
        splits={'train': 4, 'test': 2},
        notes=('split from use_for_testing',),
        topic='tables',
    ),
    Case(
        'Two columns with two splits are refused',
        ('4 #.jpg',),
        {
            't.csv': table(
                'path,label,random,by tree',
                '0.jpg,a,train,test',
                '1.jpg,b,test,train',
                '2.jpg,a,train,train',
                '3.jpg,b,train,test',
            )
        },
        't.csv',
        refused=('random and by tree hold two different splits', '--split'),
        topic='tables',
    ),
    Case(
        'Missing files, and images that the table does not name',
        ('4 #.jpg', 'x.jpg'),
        {'t.csv': table('path,label', *labelled(6))},
        't.csv',
        classes=two_classes,
        notes=(
            '2 of 6 images named in t.csv do not exist, such as 4.jpg (lines 6, 7)',
            'in none of its rows, such as x.jpg',
        ),
        topic='tables',
    ),
    Case(
        'A title above the header, in a table of a spreadsheet',
        ('6 #.jpg',),
        {'t.csv': table('Trees of the park;;', ';;', 'Datei;Baumart;mm', *labelled(6, '{i}.jpg;{label};1,{i}'))},
        't.csv',
        classes=two_classes,
        notes=('begins in line 3, after a title: Trees of the park',),
        topic='tables',
    ),
    Case(
        'Marks that programs put around cells, and a header in the middle',
        ('6 00#.jpg',),
        {
            't.csv': table(
                "photo;'label'",
                *labelled(3, '="00{i}";\'{label}\''),
                "photo;'label'",
                *labelled(6, "\u202a00{i}.jpg;'{label}'")[3:],
            )
        },
        't.csv',
        classes=two_classes,
        notes=('Quotation marks and invisible signs', '1 repeated header (line 5)'),
        topic='tables',
    ),
    Case(
        'Several classes in one cell',
        ('4 #.jpg',),
        {'t.csv': table('path,disease', '0.jpg,scab', '1.jpg,rust', '2.jpg,scab rust', '3.jpg,-')},
        't.csv',
        classes={'scab': 1, 'rust': 1, 'scab rust': 1, '-': 1},
        notes=('1 row in disease may name several classes, such as scab rust', 'The label - (1 row)'),
        topic='tables',
    ),
    Case(
        'Several photos in one cell are one specimen',
        ('3 a#.jpg', '2 b#.jpg'),
        {'t.csv': table('photos,species', 'a0.jpg|b0.jpg,oak', 'a1.jpg|b1.jpg,elm', 'a2.jpg,elm')},
        't.csv',
        classes={'oak': 2, 'elm': 3},
        groups=3,
        notes=('2 rows of t.csv name several images each in photos: the images of a row are one specimen',),
        topic='tables',
    ),
    Case(
        'A folder of photos for each row',
        ('2 F01/#.jpg', '2 F02/#.jpg', '1 F03/#.jpg'),
        {'t.csv': table('find,species', 'F01,oak', 'F02,elm', 'F03,elm')},
        't.csv',
        classes={'oak': 2, 'elm': 3},
        groups=3,
        topic='tables',
    ),
    Case(
        'Paths of two computers',
        ('3 photos/oak/#.jpg', '3 photos/elm/#.jpg'),
        {
            't.csv': table(
                'path;label',
                *[f'/home/ann/oak/{i}.jpg;oak' for i in range(3)],
                *[f'D:\\ben\\new\\elm\\{i}.jpg;elm' for i in range(3)],
            )
        },
        't.csv',
        classes=two_classes,
        notes=('begin with /home/ann or D:/ben/new',),
        topic='tables',
    ),
    Case(
        'Paths as parts of addresses',
        ('6 my photos/#.jpg',),
        {'t.csv': table('path,label', *labelled(6, 'my%20photos/{i}.jpg?w=200,{label}'))},
        't.csv',
        classes=two_classes,
        notes=('0.jpg is read for 0.jpg?w=200',),
        topic='tables',
    ),
    Case(
        'Numbers that a program gave a decimal point',
        ('4 #.jpg',),
        {'t.csv': table('path,label', '0.jpg,0.0', '1.jpg,1.0', '2.jpg,1.0', '3.jpg,'), 'classes.txt': 'oak\nelm\n'},
        't.csv',
        classes={'oak': 1, 'elm': 2},
        unlabelled=1,
        notes=('with a decimal point (0.0): read without it', 'names are read from classes.txt'),
        topic='tables',
    ),
    Case(
        'A list of images for each class, in JSON',
        ('2 images/oak/#.jpg', '2 images/elm/#.jpg'),
        {'train.json': '{"oak": ["oak/0", "oak/1"], "elm": ["elm/0", "elm/1"]}'},
        'train.json',
        classes={'oak': 2, 'elm': 2},
        notes=('has a list of images for each class',),
        topic='tables',
    ),
    Case(
        'A project of VGG Image Annotator',
        ('4 #.jpg',),
        {
            'via_project.json': json.dumps(
                {
                    '_via_settings': {},
                    '_via_img_metadata': {
                        f'{i}.jpg99': dict(
                            filename=f'{i}.jpg', size=99, regions=[dict(region_attributes={'crown': kind})]
                        )
                        for i, kind in enumerate(('oak', 'elm', 'oak', 'elm'))
                    },
                }
            )
        },
        classes={'oak': 2, 'elm': 2},
        notes=('The labels are the values of crown',),
        topic='tables',
    ),
    Case(
        'Objects in the cells of a table',
        ('4 #.jpg',),
        {
            't.csv': table(
                'photo;answer', *[f"{i}.jpg;{{'label': {{'id': {i % 2}, 'name': '{'ab'[i % 2]}'}}}}" for i in range(4)]
            )
        },
        't.csv',
        classes={'a': 2, 'b': 2},
        notes=('The objects in answer are read as columns',),
        topic='tables',
    ),
    Case(
        'Classes in JSON, inside each split',
        ('6 #.jpg',),
        {'sets.json': '{"train": {"oak": ["0.jpg", "1.jpg"], "elm": ["2.jpg", "3.jpg"]}, "test": {"elm": ["4.jpg"]}}'},
        'sets.json',
        classes={'oak': 2, 'elm': 3},
        splits={'train': 4, 'test': 1},
        notes=('an object for each split',),
        topic='tables',
    ),
    Case(
        'Columns of 0 and 1 that are properties and no classes',
        ('4 #.jpg',),
        {'t.csv': table('image,is_wet,region_count,Kind', *[f'{i}.jpg,0,1,{"xy"[i % 2]}' for i in range(4)])},
        't.csv',
        refused=('No column', 'looks like labels', 'Name the column with --label'),
        topic='tables',
    ),
    Case(
        'Marks in the columns of the classes',
        ('6 #.jpg',),
        {'t.csv': table('image,oak,elm', *[f'{i}.jpg,{("x,", ",x")[i % 2]}' for i in range(6)])},
        't.csv',
        classes=two_classes,
        topic='tables',
    ),
    Case(
        'A number of the row is not the name of the image',
        ('6 #.jpg',),
        {'t.csv': table('id,Aufnahme,label', *[f'{i},{5 - i}.jpg,{("oak", "elm")[i % 2]}' for i in range(6)])},
        't.csv',
        classes=two_classes,
        notes=('images from Aufnahme',),
        topic='tables',
    ),
    Case(
        'Comments, a drawn line, links and short words for the split',
        ('6 #.jpg',),
        {
            't.csv': table(
                'photo|label|part',
                '---|---|---',
                *[
                    f'=HYPERLINK("https://a.org/{i}.jpg"; "{i}.jpg")|{("oak", "elm")[i % 2]}|{("tr", "te")[i // 4]}'
                    for i in range(6)
                ],
                '# end',
            )
        },
        't.csv',
        classes=two_classes,
        splits={'train': 4, 'test': 2},
        notes=('1 line of a drawn table (line 2)', '1 comment (line 9)', 'Links are read as the text'),
        topic='tables',
    ),
    Case(
        'Labels in one table, specimens in another',
        ('6 photos/#.jpg',),
        {
            'labels.csv': table('image,label', *labelled(6)),
            'where.csv': table(
                'image,patient', *[f'{i}.jpg,P{i // 2}{i % 2}' for i in range(4)], '4.jpg,P00', '5.jpg,P01'
            ),
        },
        classes=two_classes,
        groups=4,
        notes=('From where.csv: the specimens',),
        topic='tables',
    ),
    Case(
        'Folders by number, whose classes a table has',
        ('2 train/000/01/a#.jpg', '2 train/000/02/b#.jpg', '1 train/001/03/c#.jpg'),
        {
            'train/metadata.csv': table(
                'file_name,label', 'a0.jpg,oak', 'a1.jpg,elm', 'b0.jpg,oak', 'b1.jpg,elm', 'c0.jpg,elm'
            )
        },
        classes={'oak': 2, 'elm': 3},
        notes=('The folders can be read in more than one way, and the table says',),
        topic='tables',
    ),
    Case(
        'A second split that is not used',
        ('6 #.jpg',),
        {
            't.csv': table(
                'image,label,split,is_test',
                *labelled(4, '{i}.jpg,{label},train,1'),
                *labelled(6, '{i}.jpg,{label},test,0')[4:],
            )
        },
        't.csv',
        classes=two_classes,
        splits={'train': 4, 'test': 2},
        notes=('is_test differs from it and is not used',),
        topic='tables',
    ),
    Case(
        'A table for each class',
        ('6 photos/#.jpg',),
        {
            'oak.csv': table('file,date', *[f'{i}.jpg,2026-05-01' for i in range(3)]),
            'elm.txt': table('photos/3.jpg', 'photos/4.jpg', 'photos/5.jpg'),
        },
        classes=two_classes,
        notes=('2 tables list the images of a class each',),
        topic='tables',
    ),
    Case(
        'An image in the tables of two classes is refused',
        ('6 photos/#.jpg',),
        {
            name: table('file', *[f'{i}.jpg' for i in numbers])
            for name, numbers in (('a.csv', '0123'), ('b.csv', '345'))
        },
        refused=('photos/3.jpg is listed in the tables of several classes (a, b)',),
        topic='tables',
    ),
    Case(
        'An Id that repeats, beside a column of images, is the label',
        ('6 train/#.jpg',),
        {'train.csv': table('Image,Id', *labelled(6))},
        classes=two_classes,
        topic='tables',
    ),
    Case(
        'A row for each folder of an observation, wherever it stands',
        tuple(f'2 photos/2026/obs{i}/#.jpg' for i in range(3)),
        {'finds.csv': table('observation_id,species', *labelled(3, 'obs{i},{label}'))},
        'finds.csv',
        classes={'oak': 4, 'elm': 2},
        groups=3,
        notes=('the images of a row are one specimen',),
        topic='tables',
    ),
    Case(
        'Specimens by the words of their column; other columns are named',
        ('6 #.jpg',),
        {'t.csv': table('file,label,No. of voucher,shelf', *labelled(6, '{i}.jpg,{label},V{half},{i}'))},
        't.csv',
        classes=two_classes,
        groups=6,
        notes=('specimens from No. of voucher; others: shelf',),
        topic='tables',
    ),
    Case(
        'Marks for a specimen that is not known, and one number that may be such a mark',
        ('9 #.jpg',),
        {
            't.csv': table(
                'file,label,specimen',
                *labelled(6, '{i}.jpg,{label},777'),
                '6.jpg,oak,n. d.',
                '7.jpg,elm,-9999',
                '8.jpg,oak,5',
            )
        },
        't.csv',
        classes={'oak': 5, 'elm': 4},
        groups=5,
        notes=('777 in specimen has 6 rows of several classes', '2 of 9 rows have no specimen'),
        topic='tables',
    ),
    Case(
        'A list of paths, each before a name of two words',
        ('4 #.jpg',),
        {'labels.txt': table(*[f'C:\\photos\\{i}.jpg Quercus {("robur", "cerris")[i % 2]}' for i in range(4)])},
        classes={'Quercus robur': 2, 'Quercus cerris': 2},
        notes=('labels.txt has no header',),
        topic='tables',
    ),
    Case(
        'A web page under the name of a table is refused',
        ('2 #.jpg',),
        {'labels.csv': '<html><title>Sign in</title></html>'},
        'labels.csv',
        refused=('labels.csv is a web page (Sign in), and no table',),
        topic='tables',
    ),
]

cases = folder_cases + table_cases
