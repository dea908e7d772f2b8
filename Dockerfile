# One image for all Celery services. docker-compose.yml has the command and the health check of each.

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
# An empty package replaces ours here, so that the layer with the dependencies is rebuilt only when they change.
RUN mkdir bridge && touch bridge/__init__.py \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[flower]'
COPY bridge bridge
RUN /venv/bin/pip install --no-cache-dir --no-deps --force-reinstall .

# The final image has no build tools: all dependencies are installed from wheels.
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
