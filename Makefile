# make demo · make test · make test-fast · make check · make docs · make bench · make bench-gpu — each sets up what it needs in $(VENV)
VENV ?= .venv
bin := $(VENV)/bin
# keep compiled modules: without them each process compiles the 5,000 modules of torch and fastai, in 15 seconds
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-fast check docs lessons readme images bench bench-gpu clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(bin)/python || python3 -m venv $(VENV)
	$(bin)/python -m pip install --quiet --disable-pip-version-check uv
	@echo 'Installing the packages: a few minutes and about 6 GB the first time.'
	$(bin)/uv pip install --quiet --python $(bin)/python -c constraints.txt -e '.[dev,docs]'
	touch $@

# the main job on the built-in sample: look at the images, train, evaluate, report, export; the network is pretrained
demo: $(VENV)/.installed
	@rm -rf demo && mkdir demo
	@set -e; begin=$$(date +%s); $(bin)/fungi explore sample --out demo/images; \
	looked=$$(date +%s); $(bin)/fungi train mushrooms --source sample --out demo/run; \
	trained=$$(date +%s); $(bin)/fungi export demo/run --out demo/bundle; \
	exported=$$(date +%s); \
	echo "Exploring took $$((looked - begin)) s, training, evaluation and report $$((trained - looked)) s, export $$((exported - trained)) s."
	@echo 'Open demo/run/report.html in a browser. To use the network on a page of its own: $(bin)/fungi serve demo/bundle'

# each file and each notebook on one of two workers; the slowest twenty are listed at the end
pytest := OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed
	$(pytest)

# what to run while working, under two minutes: no notebooks, no browser, no processes, nothing marked slow
test-fast: $(VENV)/.installed
	$(pytest) -m 'not notebook and not browser and not process and not slow'

# style, layers, and that modules and README are exported from clean notebooks
check: $(VENV)/.installed
	$(bin)/ruff format --check nbs tests docs benchmarks
	$(bin)/ruff check nbs fungi_fastai tests docs benchmarks
	$(bin)/lint-imports
	PATH="$(bin):$$PATH" .ci/exported

docs: $(VENV)/.installed
	$(bin)/python docs/build.py

# run the notebooks again and save their outputs: make lessons, or make lessons NB=nbs/training/fit.ipynb
lessons: $(VENV)/.installed
	PATH="$(bin):$$PATH" OMP_NUM_THREADS=1 $(bin)/python docs/lessons.py $(NB)

readme: $(VENV)/.installed
	$(bin)/python docs/readme.py

images: $(VENV)/.installed
	$(bin)/python docs/images.py

# side by side with plain fastai and others: about an hour, with nothing else running
bench: $(VENV)/.installed
	$(bin)/python benchmarks/run.py

# on a machine with a CUDA device: at most eight minutes
bench-gpu: $(VENV)/.installed
	$(bin)/python benchmarks/gpu.py

clean:
	rm -rf _proc _docs _site demo build dist *.egg-info
