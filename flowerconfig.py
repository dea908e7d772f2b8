"""Configuration of Flower, read from the working directory. The task list shows the event of each task."""

tasks_columns = "name,args,state,received,uuid"
