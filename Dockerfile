# One image for all Celery services; docker-compose.yml says what each of them runs, and how its health is checked.

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# An empty package stands in for ours, so that the layer of dependencies is built anew only when they change.
RUN mkdir bridge && touch bridge/__init__.py \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[flower]'
COPY bridge bridge
RUN /venv/bin/pip install --no-cache-dir --no-deps --force-reinstall .

# What built the package stays behind: all dependencies come as wheels, so the image needs no compiler either.
FROM python:3.13-slim
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --no-create-home --shell /usr/sbin/nologin bridge
COPY --from=build /venv /venv
WORKDIR /app
# Read from the working directory by `celery -A bridge`.
COPY celeryconfig.py flowerconfig.py ./
COPY tasks tasks
USER bridge
CMD ["celery", "-A", "bridge", "worker", "--loglevel", "INFO"]
