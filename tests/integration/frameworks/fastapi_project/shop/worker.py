import os

from celery import Celery

import bridge

app = Celery("shop", broker=os.environ["REDIS_URL"], include=["shop.handlers"])
bridge.install(app)
