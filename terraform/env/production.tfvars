environment = "production"
region      = "us-west-2"
