from django.db import models


class Order(models.Model):
    total = models.IntegerField()
    confirmed_by = models.CharField(max_length=50, null=True)
    reserved = models.BooleanField(default=False)
