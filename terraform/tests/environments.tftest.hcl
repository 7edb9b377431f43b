# What must hold whatever is changed: sizes as they were promised, nothing public, everything encrypted, production
# protected, outputs that the charts take. The provider is a mock: nothing is asked of AWS.
mock_provider "aws" {
  mock_data "aws_availability_zones" {
    defaults = { names = ["us-west-2a", "us-west-2b", "us-west-2c", "us-west-2d"] }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_resource "aws_db_instance" {
    defaults = {
      address            = "verdict.example.us-west-2.rds.amazonaws.com"
      port               = 5432
      master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:us-west-2:111122223333:secret:rds!db-1", kms_key_id = "k", secret_status = "active" }]
    }
  }
  mock_resource "aws_msk_cluster" {
    defaults = { arn = "arn:aws:kafka:us-west-2:111122223333:cluster/verdict/1" }
  }
  mock_resource "aws_serverlessapplicationrepository_cloudformation_stack" {
    defaults = { outputs = { RotationLambdaARN = "arn:aws:lambda:us-west-2:111122223333:function:rotation" } }
  }
}

run "staging" {
  command = apply
  variables { environment = "staging" }

  assert {
    condition     = aws_eks_node_group.this.instance_types[0] == "m5.large" && aws_eks_node_group.this.scaling_config[0].min_size == 2
    error_message = "Staging runs on 2 × m5.large."
  }
  assert {
    condition     = aws_db_instance.this.instance_class == "db.t3.medium" && !aws_db_instance.this.multi_az
    error_message = "Staging's database is one db.t3.medium."
  }
  assert {
    condition     = length(aws_msk_cluster.this) == 0 && length(aws_msk_scram_secret_association.this) == 0
    error_message = "Staging has no Kafka of its own."
  }
  assert {
    condition     = aws_eks_cluster.this.name == "enterprise-ai-cluster-staging"
    error_message = "Both environments must fit into one account."
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 1
    error_message = "Staging pays for one NAT gateway."
  }
}

run "production" {
  command = apply
  variables { environment = "production" }

  assert {
    condition     = aws_eks_node_group.this.instance_types[0] == "m5.xlarge" && aws_eks_node_group.this.scaling_config[0].min_size == 3
    error_message = "Production runs on 3 × m5.xlarge."
  }
  assert {
    condition     = aws_eks_cluster.this.name == "enterprise-ai-cluster" && aws_eks_cluster.this.deletion_protection
    error_message = "Production's cluster has the name of the operator guide, and is protected."
  }
  assert {
    condition     = aws_db_instance.this.instance_class == "db.r5.large" && aws_db_instance.this.multi_az
    error_message = "Production's database is a db.r5.large in two zones."
  }
  assert {
    condition     = aws_db_instance.this.deletion_protection && !aws_db_instance.this.skip_final_snapshot
    error_message = "Production's database can't be lost by a plan."
  }
  assert {
    condition     = one(aws_msk_cluster.this).number_of_broker_nodes == 3 && one(aws_msk_cluster.this).broker_node_group_info[0].instance_type == "kafka.m5.large"
    error_message = "Production's Kafka is 3 × kafka.m5.large."
  }
  assert {
    condition     = strcontains(one(aws_msk_configuration.this).server_properties, "default.replication.factor=3") && strcontains(one(aws_msk_configuration.this).server_properties, "auto.create.topics.enable=false")
    error_message = "Topics have three copies, and are made on purpose."
  }
  assert {
    condition     = one(aws_msk_cluster.this).encryption_info[0].encryption_in_transit[0].client_broker == "TLS" && !one(aws_msk_cluster.this).client_authentication[0].unauthenticated
    error_message = "Kafka is spoken to over TLS, by those it knows."
  }
  assert {
    condition     = length(aws_nat_gateway.this) == 3 && length(distinct(aws_subnet.private[*].availability_zone)) == 3
    error_message = "Production survives the loss of a zone."
  }
}

run "nothing_is_public_and_everything_is_encrypted" {
  command = apply
  variables { environment = "production" }

  assert {
    condition     = !aws_db_instance.this.publicly_accessible && aws_db_instance.this.storage_encrypted && aws_db_instance.this.backup_retention_period == 7
    error_message = "The database is private, encrypted and kept for 7 days."
  }
  assert {
    condition     = contains([for p in aws_db_parameter_group.this.parameter : "${p.name}=${p.value}"], "rds.force_ssl=1")
    error_message = "The database refuses plain connections."
  }
  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "The cluster's API is private until api_cidrs says otherwise."
  }
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.artifacts.block_public_acls, aws_s3_bucket_public_access_block.artifacts.block_public_policy,
      aws_s3_bucket_public_access_block.artifacts.ignore_public_acls, aws_s3_bucket_public_access_block.artifacts.restrict_public_buckets,
    ])
    error_message = "The bucket is closed to the public."
  }
  assert {
    condition     = aws_s3_bucket_versioning.artifacts.versioning_configuration[0].status == "Enabled"
    error_message = "An overwritten artifact can be had back."
  }
  assert {
    condition     = strcontains(aws_s3_bucket_policy.artifacts.policy, "aws:SecureTransport")
    error_message = "The bucket refuses plain HTTP."
  }
  assert {
    condition     = aws_launch_template.node.metadata_options[0].http_tokens == "required" && aws_launch_template.node.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "No pod gets the credentials of its node."
  }
  assert {
    condition     = aws_kms_key.data.enable_key_rotation && alltrue([for secret in aws_secretsmanager_secret.this : secret.kms_key_id == aws_kms_key.data.arn])
    error_message = "Secrets lie under the key of the environment, which rotates."
  }
  assert {
    condition     = toset(keys(aws_secretsmanager_secret_rotation.database)) == toset(["mlflow-credentials", "predict-credentials"])
    error_message = "The passwords of the database's users rotate."
  }
}

run "a_role_for_each_service_that_can_do_only_what_is_its_own" {
  command = apply
  variables { environment = "staging" }

  assert {
    condition     = alltrue([for service in ["model-registry", "predict", "rag"] : aws_eks_pod_identity_association.pod[service].service_account == service && aws_eks_pod_identity_association.pod[service].namespace == "ml-services"])
    error_message = "Each service has an association for its own service account."
  }
  assert {
    condition     = strcontains(aws_iam_role_policy.pod["model-registry"].policy, "s3:PutObject") && !strcontains(aws_iam_role_policy.pod["predict"].policy, "s3:") && !strcontains(aws_iam_role_policy.pod["rag"].policy, "s3:")
    error_message = "Only the registry touches the bucket."
  }
  assert {
    condition     = alltrue([for policy in aws_iam_role_policy.pod : !strcontains(policy.policy, "\"Resource\":\"*\"") && !strcontains(policy.policy, ":*\"")])
    error_message = "No service may do everything, or to everything."
  }
}

run "the_charts_get_what_they_need" {
  command = apply
  variables { environment = "production" }

  assert {
    condition     = output.chart_values.model-registry.artifacts.store == "s3://verdict-production-artifacts-111122223333"
    error_message = "The registry is told its bucket."
  }
  assert {
    condition     = length(output.chart_values.predict.database.cidrs) == 3 && output.chart_values.predict.database.port == 5432
    error_message = "The NetworkPolicy is told where the database is."
  }
  assert {
    condition     = output.chart_values.foundation.externalSecrets.kafka == "AmazonMSK_verdict-production-kafka-credentials"
    error_message = "MSK takes users only from entries with its prefix."
  }
  assert {
    condition     = output.cluster.deploy_role == null
    error_message = "Nobody deploys before a repository is named."
  }
}

run "a_repository_may_deploy_from_its_environment_alone" {
  command = apply
  variables {
    environment       = "production"
    github_repository = "acme/verdict"
  }

  assert {
    condition     = strcontains(one(aws_iam_role.deploy).assume_role_policy, "repo:acme/verdict:environment:production")
    error_message = "The role trusts one environment of one repository."
  }
  assert {
    condition     = one(aws_eks_access_entry.deploy).kubernetes_groups == toset(["verdict-deployers"])
    error_message = "In the cluster the role is what charts/foundation says of its group."
  }
}

run "an_environment_without_sizes_is_refused" {
  command = plan
  variables { environment = "test" }
  expect_failures = [var.environment]
}

run "the_api_is_not_opened_to_everybody" {
  command = plan
  variables {
    environment = "staging"
    api_cidrs   = ["0.0.0.0/0"]
  }
  expect_failures = [var.api_cidrs]
}
