"""Flower reads this from the working directory: the task list shows which event each task is for."""

tasks_columns = "name,args,state,received,uuid"
