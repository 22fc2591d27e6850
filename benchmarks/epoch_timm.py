"""One epoch of training, all layers, with timm's network and without fastai: a torch loop, or Hugging Face's `Trainer`.

run.py starts it in another environment (.venv-bench), so it imports neither fastai nor fungi_fastai."""

import csv

from child import parse_arguments, report, synchronized_time

contender, parameters = parse_arguments()
import timm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402

device = 'cuda' if torch.cuda.is_available() else 'cpu'
with open(parameters['table']) as file:
    rows = [row for row in csv.DictReader(file) if row['split'] == 'train']
classes = sorted({row['label'] for row in rows})


class Images(torch.utils.data.Dataset):
    "Training images, transformed as in the examples of torchvision and Trainer"

    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(parameters['size']),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def __len__(self):
        return len(rows)

    def __getitem__(self, i):
        return dict(
            pixel_values=self.change(Image.open(rows[i]['path']).convert('RGB')), labels=classes.index(rows[i]['label'])
        )


def network():
    from plain_convmixer import convmixer

    return convmixer(parameters['arch'], len(classes)) or timm.create_model(
        parameters['arch'], num_classes=len(classes)
    )


def loop():
    model = network().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(
        Images(), parameters['bs'], shuffle=True, num_workers=parameters['workers'], drop_last=True
    )
    model.train()

    def step(batch):
        loss = torch.nn.functional.cross_entropy(model(batch['pixel_values'].to(device)), batch['labels'].to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(next(iter(loader)))  # not measured
    start = synchronized_time()
    for batch in loader:
        step(batch)
    return synchronized_time() - start


class Classifier(torch.nn.Module):
    "A timm network with the signature that Trainer expects"

    def __init__(self):
        super().__init__()
        self.model = network()

    def forward(self, pixel_values, labels):
        logits = self.model(pixel_values)
        return dict(loss=torch.nn.functional.cross_entropy(logits, labels), logits=logits)


def trainer():
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stopwatch(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            self.start = synchronized_time()

        def on_epoch_end(self, *_, **__):
            self.seconds = synchronized_time() - self.start

    def arguments(**options):
        return TrainingArguments(
            output_dir='trainer',
            per_device_train_batch_size=parameters['bs'],
            dataloader_num_workers=parameters['workers'],
            dataloader_drop_last=True,
            dataloader_pin_memory=device == 'cuda',
            use_cpu=device == 'cpu',
            report_to='none',
            save_strategy='no',
            logging_strategy='no',
            disable_tqdm=True,
            **options,
        )

    model, stopwatch = Classifier(), Stopwatch()
    Trainer(model, arguments(max_steps=1), train_dataset=Images()).train()  # not measured
    Trainer(model, arguments(num_train_epochs=1), train_dataset=Images(), callbacks=[stopwatch]).train()
    return stopwatch.seconds


seconds = dict(torch=loop, hf=trainer)[contender]()
count = len(rows) // parameters['bs'] * parameters['bs']
report(seconds=seconds, rate=count / seconds, images=count)
