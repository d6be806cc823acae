"""New projects (`ixtune init`): tasks, a look at the data, and the two files to write."""
