environment = "staging"
region      = "us-west-2"
