"""One epoch of training, all layers, with timm's network and without fastai: a plain torch loop, or Hugging Face's `Trainer`.

Runs in an environment of its own (.venv-bench), so it imports neither fastai nor fungi_fastai.   run.py starts it"""

import csv

from child import asked, format_duration, report

who, given = asked()
import timm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402

device = 'cuda' if torch.cuda.is_available() else 'cpu'
with open(given['table']) as file:
    rows = [row for row in csv.DictReader(file) if row['split'] == 'train']
classes = sorted({row['label'] for row in rows})


class Images(torch.utils.data.Dataset):
    "What the examples of torchvision and of Trainer do to a training image"

    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(given['size']),
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

    return convmixer(given['arch'], len(classes)) or timm.create_model(given['arch'], num_classes=len(classes))


def loop():
    model = network().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(
        Images(), given['bs'], shuffle=True, num_workers=given['workers'], drop_last=True
    )
    model.train()

    def step(batch):
        loss = torch.nn.functional.cross_entropy(model(batch['pixel_values'].to(device)), batch['labels'].to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(next(iter(loader)))  # does not count
    began = format_duration()
    for batch in loader:
        step(batch)
    return format_duration() - began


class Classifier(torch.nn.Module):
    "A timm network as Trainer calls networks"

    def __init__(self):
        super().__init__()
        self.model = network()

    def forward(self, pixel_values, labels):
        seen = self.model(pixel_values)
        return dict(loss=torch.nn.functional.cross_entropy(seen, labels), logits=seen)


def trainer():
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Stopwatch(TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            self.began = format_duration()

        def on_epoch_end(self, *_, **__):
            self.seconds = format_duration() - self.began

    def arguments(**more):
        return TrainingArguments(
            output_dir='trainer',
            per_device_train_batch_size=given['bs'],
            dataloader_num_workers=given['workers'],
            dataloader_drop_last=True,
            dataloader_pin_memory=device == 'cuda',
            use_cpu=device == 'cpu',
            report_to='none',
            save_strategy='no',
            logging_strategy='no',
            disable_tqdm=True,
            **more,
        )

    model, watch = Classifier(), Stopwatch()
    Trainer(model, arguments(max_steps=1), train_dataset=Images()).train()  # does not count
    Trainer(model, arguments(num_train_epochs=1), train_dataset=Images(), callbacks=[watch]).train()
    return watch.seconds


seconds = dict(torch=loop, hf=trainer)[who]()
count = len(rows) // given['bs'] * given['bs']
report(seconds=seconds, rate=count / seconds, images=count)
