from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("total", models.IntegerField()),
                ("confirmed_by", models.CharField(max_length=50, null=True)),
                ("reserved", models.BooleanField(default=False)),
            ],
        ),
    ]
