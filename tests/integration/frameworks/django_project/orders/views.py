import json
from functools import partial

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from bridge import Event, publish_event

from .models import Order
from .tasks import reserve


@csrf_exempt
@transaction.atomic
def create(request: HttpRequest) -> JsonResponse:
    order = Order.objects.create(total=json.loads(request.body)["total"])
    payload = {"order_id": order.pk}
    transaction.on_commit(partial(publish_event, "order.created", payload))
    reserve.delay_on_commit(Event(type="order.placed", payload=payload))
    return JsonResponse({"id": order.pk}, status=202)


def show(request: HttpRequest, order_id: int) -> JsonResponse:
    return JsonResponse(Order.objects.values().get(pk=order_id))
