# shop.py
import bridge
from celery import Celery

app = Celery("shop", broker="redis://localhost:6379/0", include=["stock", "payments", "mail"])
bridge.install(app)
